#!/usr/bin/env bash
# Makes what a NATS server with TLS and an account for Lethe needs, and what its users need:
#
#   deploy/nats/setup.sh FOLDER [HOST…]     HOST: names and addresses by which clients reach the server (localhost 127.0.0.1)
#
#   FOLDER/nats/      for the server: nats.conf, server.pem, server.key
#   FOLDER/ca.pem     for everyone: --nats-ca
#   FOLDER/ROLE.nk    for coordinator, worker, client: --nats-nkey
#   FOLDER/ca.key     for nobody: it signs server certificates
#
# What is there stays, but the server's certificate and nats.conf: they are made anew, for the given hosts and 365 days.
# FOLDER is its owner's alone. What is in it can be read by whoever a container's mount gives it to, whatever their number.
set -euo pipefail
umask 022

readonly DAYS=365
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { printf 'nats: error: %s\n' "$*" >&2; exit 1; }
# openssl talks while it works; what it says counts when it fails.
quietly() { local said; said=$(openssl "$@" 2>&1) || die "openssl $1: $said"; }
[ $# -ge 1 ] || die "which folder? deploy/nats/setup.sh FOLDER [HOST…]"
command -v openssl >/dev/null || die "openssl is needed (Debian: apt-get install openssl)"
folder="$1"; shift
[ $# -gt 0 ] || set -- localhost 127.0.0.1

mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
mkdir -p nats

# --- Keys of the roles: a prefix, 32 bytes and their CRC-16/XMODEM (low byte first), in base32.

nkey() { # BYTE…
  local crc=0 byte hex=
  for byte in "$@"; do
    crc=$((crc ^ (byte << 8)))
    for _ in 1 2 3 4 5 6 7 8; do
      crc=$((crc & 0x8000 ? (crc << 1 ^ 0x1021) & 0xffff : crc << 1))
    done
  done
  for byte in "$@" $((crc & 255)) $((crc >> 8)); do hex+=$(printf '\\x%02x' "$byte"); done
  printf '%b' "$hex" | base32 -w 0 | tr -d '='
}

last_32_bytes() { tail -c 32 | od -An -v -tu1; }

# Earlier versions called a client's key `person.nk`; the key stays.
for file in person.nk nats/person.pub; do
  if [ -f "$file" ] && ! [ -f "${file/person/client}" ]; then mv "$file" "${file/person/client}"; fi
done
configuration=$(cat "$here/nats.conf")
for role in coordinator worker client; do
  if ! [ -f "$role.nk" ] || ! [ -f "nats/$role.pub" ]; then
    key=$(mktemp)
    openssl genpkey -algorithm ed25519 -out "$key"
    # 149 0 and 160: a user's seed, and a user's public key.
    # shellcheck disable=SC2046 # one argument a byte
    nkey 149 0 $(openssl pkey -in "$key" -outform DER | last_32_bytes) > "$role.nk"
    # shellcheck disable=SC2046
    nkey 160 $(openssl pkey -in "$key" -pubout -outform DER | last_32_bytes) > "nats/$role.pub"
    rm -f "$key"
  fi
  configuration=${configuration//@$role@/$(cat "nats/$role.pub")}
done
printf '%s\n' "$configuration" > nats/nats.conf

# --- The authority and the server's certificate.

new_key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
if ! [ -f ca.key ] || ! [ -f ca.pem ]; then
  (umask 077; quietly req -x509 "${new_key[@]}" -days $((10 * DAYS)) -subj "/CN=Lethe NATS authority" -keyout ca.key -out ca.pem)
  chmod 644 ca.pem
fi
names=
for host in "$@"; do
  case "$host" in
    *[!0-9a-zA-Z.:*-]*) die "'$host' is no host name or address" ;;
    *:*) names+=",IP:$host" ;;
    *[!0-9.]*) names+=",DNS:$host" ;;
    *) names+=",IP:$host" ;;
  esac
done
request=$(mktemp)
quietly req "${new_key[@]}" -subj "/CN=Lethe NATS" -keyout nats/server.key -out "$request"
quietly x509 -req -in "$request" -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 16)" -days "$DAYS" \
  -extfile <(printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' "${names#,}") -out nats/server.pem
rm -f "$request"
chmod 644 nats/server.key
printf 'nats: %s is ready for %s\n' "$folder" "$*"
