#!/usr/bin/env bash
# Makes deploy/compose/secrets: keys and certificates of NATS, and the S3 server's key. What is there stays.
set -euo pipefail
cd "$(dirname "$0")"

../nats/setup.sh secrets nats localhost 127.0.0.1
if ! [ -f secrets/s3.env ]; then
  (umask 077; printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$(openssl rand -hex 10)" "$(openssl rand -hex 20)" > secrets/s3.env)
fi
echo "compose: deploy/compose/secrets is ready"
