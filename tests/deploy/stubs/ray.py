"""Stands in for Ray on this machine: executes a remote function at once, and again as its options say."""


class Remote:
    def __init__(self, function, max_retries: int, retry_exceptions: list[type[Exception]]) -> None:
        self.function, self.retries, self.temporary = function, max_retries, tuple(retry_exceptions)

    def options(self, num_gpus: float) -> "Remote":
        return self

    def remote(self, *arguments: object):
        def attempts():
            for attempt in range(self.retries + 1):
                try:
                    return self.function(*arguments)
                except self.temporary:
                    if attempt == self.retries:
                        raise
                    print(f"{self.retries - attempt} retries remaining, so the task will be retried")

        return attempts


def remote(**options: object):
    return lambda function: Remote(function, **options)


def get(task):
    return task()
