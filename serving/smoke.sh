#!/usr/bin/env bash
# Whether stock TF Serving serves an exported model, and answers as the embedded server does, over
# gRPC and REST. Needs Docker, curl and an environment with this package.
#
#     serving/smoke.sh saved_models/movielens        # asks for user 42
#     serving/smoke.sh saved_models/movielens 7 8    # for these
#     RUN=runs/mine serving/smoke.sh saved_models/mine    # and all users, against the trained model
#
# 0: same answers. 1: TF Serving does not load the model or answers otherwise. 2: nothing to try.
set -euo pipefail

image=${IMAGE:-tensorflow/serving:2.20.0}
limit=${LIMIT:-180} # seconds until a version must be ready
fail() { echo "serving/smoke.sh: $2" >&2; exit "$1"; }
[ $# -ge 1 ] || fail 2 "name an exported model: serving/smoke.sh saved_models/movielens [USER ...]"
[ -d "$1" ] || fail 2 "$1 is no folder. Export a model first: python -m tfrec_attn.export."
for program in docker curl; do
    command -v $program > /dev/null || fail 2 "$program is not installed."
done
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$1" && pwd)
model=$(basename "$folder")
shift
[ $# -ge 1 ] || set -- 42

work=$(mktemp -d)
container=tfrec-attn-smoke-$$
embedded=
finish() {
    status=$?
    if [ -n "$embedded" ]; then kill "$embedded" && wait "$embedded" || true; fi
    if [ $status -eq 1 ]; then docker logs --tail 50 "$container" >&2 || true; fi
    docker rm --force "$container" > /dev/null || true
    rm -r "$work"
}
trap finish EXIT

# ready URL ALIVE...: metadata answers 200 once a version is loaded and warm.
ready() {
    for _ in $(seq "$limit"); do
        if curl --silent --fail --output /dev/null "$1/v1/models/$model/metadata"; then return; fi
        "${@:2}" || return 1
        sleep 1
    done
    return 1
}
running() { [ "$(docker inspect --format '{{.State.Running}}' "$container")" = true ]; }

docker run --detach --name "$container" --publish 127.0.0.1::8500 --publish 127.0.0.1::8501 \
    --volume "$folder:/models/$model:ro" --env "MODEL_NAME=$model" "$image" > /dev/null
grpc=$(docker port "$container" 8500/tcp)
rest=http://$(docker port "$container" 8501/tcp)
ready "$rest" running || fail 1 "$image has no version of $model ready."

python -m tfrec_attn.serve --model_base_path "$folder" --port 0 --rest_api_port 0 \
    > "$work/address" 2> "$work/log" &
embedded=$!
alive() { kill -0 "$embedded" 2> /dev/null || fail 2 "$(tail -n 3 "$work/log")"; }
until grep --quiet REST "$work/address"; do alive; sleep 0.1; done
own_grpc=$(sed 's/.*gRPC on \([^,]*\),.*/\1/' "$work/address")
own_rest=$(sed 's/.*REST on //' "$work/address")
ready "$own_rest" alive || fail 2 "the embedded server does not load it: $(tail -n 3 "$work/log")"

# Of every user four answers: over gRPC of TF Serving and of the embedded server, and over REST.
for user in "$@"; do
    for where in "--target=$grpc" "--target=$own_grpc" "--rest=$rest" "--rest=$own_rest"; do
        python -m tfrec_attn.ask --json --timeout 60 --model "$model" --user "$user" "$where" \
            >> "$work/answers" || fail 1 "no answer for user $user from ${where#*=}."
    done
done
python "$here/same_answers.py" "$work/answers" || fail 1 "$image answers otherwise."

if [ -n "${RUN:-}" ]; then
    python "$here/../benchmarks/parity.py" --run "$RUN" --model_name "$model" \
        --grpc "$grpc" --rest "$rest" || fail 1 "$image answers otherwise than $RUN."
fi
