#!/bin/sh
# A job of any CI server: audit a checkpoint, then let it pass or not. Needs latentprint on the PATH.
#
#   MODEL=my-ddpm TRAIN=photos/ HOLDOUT=unseen/ RUN=runs/candidate sh infra/examples/gate.sh
#
# The exit status is the gate's: 0 pass, 1 fail, 2 usage or input error, 3 inconclusive; anything but 0 stops a pipeline.
# Limits of your own go into GATE. RUN is kept: a second job over the same inputs goes on where this one stopped.
# With SEAL, as audit printed it, no other run is taken (infra/SECURITY.md).
set -eu

: "${RUN:?the run directory}"
: "${GATE:=--max-auc 0.6}"

if [ -n "${MODEL:-}" ]; then
    latentprint audit --model "$MODEL" --train "${TRAIN:?training images}" --holdout "${HOLDOUT:?held-out images}" \
        --out "$RUN"
fi

# A gate that lets everything through is worse than none: first see it block what it must.
# shellcheck disable=SC2086  # GATE holds several words
latentprint gate --self-test $GATE >&2

summary="$RUN/gate.md"
status=0
# shellcheck disable=SC2086
latentprint gate --run "$RUN" $GATE ${WAIVERS:+--waivers "$WAIVERS"} ${SEAL:+--seal "$SEAL"} --markdown "$summary" || status=$?

# Where the CI server shows Markdown (GitHub does), show it.
if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$summary" ]; then
    cat "$summary" >> "$GITHUB_STEP_SUMMARY"
fi
exit "$status"
