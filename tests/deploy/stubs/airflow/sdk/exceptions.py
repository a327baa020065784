"""The exception by which a task tells Airflow not to try again."""


class AirflowFailException(Exception):
    pass
