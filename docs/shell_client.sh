#!/bin/sh
# A client of the bus in the shell: it needs redis-cli and a Redis that a bus uses.
#
#   shell_client.sh send CHANNEL JSON        publish a payload, to who listens now and to who comes later
#   shell_client.sh listen CHANNEL           print the wire JSON of what is published from now on, one a line
#   shell_client.sh history CHANNEL [N]      print the payloads of the last N messages, the newest first
#
# REDIS_CLI is the command with its options (redis-cli -s /path), NAMESPACE what the names begin with, NAME who is sending.
# A password belongs into REDISCLI_AUTH, not into REDIS_CLI: arguments are seen in the list of processes.
set -eu

usage() { sed -n '4,6s/^# *//p' "$0" >&2; exit 2; }

cli=${REDIS_CLI:-redis-cli} prefix=${NAMESPACE:+$NAMESPACE:} name=${NAME:-shell}
[ $# -ge 2 ] || usage
verb=$1 channel=$prefix$2 stream=${prefix}message-stream:$2

send() {
    id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    now=$(date +%s)000
    # shellcheck disable=SC2086
    kept=$($cli XADD "$stream" MAXLEN '~' 10000 '*' id "$id" timestamp "$now" type custom from "$name" to '' payload "$1")
    case $kept in *[0-9]-[0-9]*) ;; *) echo "not sent: $kept" >&2; exit 1 ;; esac  # redis-cli ends with 0 after an error
    # shellcheck disable=SC2086
    $cli PUBLISH "$channel" \
        "{\"id\":\"$id\",\"timestamp\":$now,\"type\":\"custom\",\"from\":\"$name\",\"payload\":$1}" >/dev/null
    echo "$id"
}

# shellcheck disable=SC2086
case $verb in
    send) [ $# -eq 3 ] || usage; send "$3" ;;
    # Whatever is heard is three lines: what it is, the channel, the wire JSON.
    listen) $cli SUBSCRIBE "$channel" | while IFS= read -r what && IFS= read -r _ && IFS= read -r wire; do
            [ "$what" != message ] || printf '%s\n' "$wire"
        done ;;
    history) $cli XREVRANGE "$stream" + - COUNT "${3:-10}" | awk 'found { print; found = 0 } $0 == "payload" { found = 1 }' ;;
    *) usage ;;
esac
