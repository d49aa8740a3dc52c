#!/bin/bash
# tools/demo.sh PROGRAM: a real film with sound through the whole engine with the bundled model: what is in the file,
# what it says and shows, unpruned and pruned, each answer beside the truth. Ends with how many were right.
set -u
omnidrop=$1
clips=tests/data/omni-tiny-demo
right=0; asked=0

line() { printf '\n== %s\n' "$*"; }

# ask CLIP QUESTION TRUTH OPTIONS...: the answer beside the truth
ask() {
    local clip=$1 question=$2 truth=$3; shift 3
    local said
    said=$("$omnidrop" chat --video "$clips/$clip" -q -p "$question" "$@") || { echo "the engine failed"; return; }
    asked=$((asked + 1))
    local mark="no"
    [[ $said == "$truth" ]] && { mark="yes"; right=$((right + 1)); }
    printf '  %-46s %-32s truth: %-32s right: %s\n' "$question" "$said" "$truth" "$mark"
}

line "The file"
"$omnidrop" inspect media "$clips/av000.mp4" || exit 1
line "The device and the model"
"$omnidrop" inspect device | head -1
"$omnidrop" inspect model | head -1

for options in "--policy none" "--retention 0.4"; do
    line "Asked with $options"
    # shellcheck disable=SC2086
    {
        ask av000.mp4 "Transcribe the speech." "zero bird then" $options
        ask av000.mp4 "What is on the screen when bird is said?" "a blue cross and a red star" $options
        ask av000.mp4 "What colour is the star?" "red" $options
        ask av000.mp4 "Is the word over spoken?" "no" $options
    }
done

line "What lived at each layer, pruned to a mean of 40 % over the layers"
"$omnidrop" chat --video "$clips/av000.mp4" -q --retention 0.4 --return-pruning -p "What colour is the star?"

line "A speech file, in windows, as subtitles"
"$omnidrop" transcribe -q -F srt -o - "$clips/speech000.wav"

line "$right of $asked answers equal the truth"
