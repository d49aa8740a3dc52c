#!/bin/bash
# Goal: whatever is wrong with a model, a file or a wish, the message names it and the way out, the exit status is the
# documented one, and nothing stands on standard output. Method: small broken copies of a checkpoint and of media; where a
# message says what would fit, that is tried, and a little more than that must fail.
. tests/cli/lib.sh
media=tests/data/media
chat() { "$bin" chat "$@" -p x; }
# model WHAT PATTERN [DIR]: refused as a model; the default is $dir/m
model() { refuses "$1" 4 "$2" chat -m "${3:-$dir/m}" --max-tokens 4; }
fresh() { rm -rf "$dir/m"; cp -r "${1:-$random}" "$dir/m"; chmod -R u+w "$dir/m"; }
# header FROM TO: replace text of equal length in the tensor file's header
header() { fresh; LC_ALL=C sed -i "s/$1/$2/" "$dir/m/model.safetensors"; }
first=audio_tower.conv1.bias

# --- models
model "no such folder" '/nonexistent: no such folder' /nonexistent
model "a file in place of a folder" 'README.md: ' README.md
mkdir "$dir/empty"; model "an empty folder" "$dir/empty: not a checkpoint: it holds no config.json" "$dir/empty"
fresh; rm "$dir/m/model.safetensors"; model "no tensors" "$dir/m.*safetensors"
fresh; rm "$dir/m/tokenizer.json"; model "no tokenizer" 'tokenizer.json'
fresh; truncate -s 1000000 "$dir/m/model.safetensors"
model "a truncated tensor file" 'm/model.safetensors: visual[a-z0-9_.]*: ends at byte [0-9]+ .*truncated'
fresh; truncate -s 100 "$dir/m/model.safetensors"; model "a truncated header" 'model.safetensors: the header has [0-9]+ bytes.*truncated'
fresh; : >"$dir/m/model.safetensors"; model "an empty tensor file" 'model.safetensors: 0 bytes'
fresh; printf '\377\377\377\377\377\377\377\177' | dd of="$dir/m/model.safetensors" conv=notrunc 2>/dev/null
model "a header of 2^63 bytes" 'model.safetensors: .*header'
header '"data_offsets":\[480,624\]' '"data_offsets":[NaN,624]'; model "an offset that is NaN" 'model.safetensors: .*NaN'
header '"data_offsets":\[480,624\]' '"data_offsets":[-48,624]'; model "a negative offset" "model.safetensors: $first"
header '"data_offsets":\[480,624\]' '"data_offsets":[624,480]'; model "an end before its start" "model.safetensors: $first"
header '"data_offsets":\[480,624\]' '"data_offsets":[476,620]'; model "ranges that overlap" "model.safetensors: .*$first.*overlap"
header '"data_offsets":\[480,624\]' '"data_offsets":[480,999]'; model "a range of another size" "model.safetensors: $first"
header '"dtype":"F32","shape":\[36\],"data_offsets":\[480' '"dtype":"I32","shape":[36],"data_offsets":[480'; model "another type" "$first.*I32"
header '"shape":\[36\],"data_offsets":\[480' '"shape":[63],"data_offsets":[480'; model "another shape" "$first"
header '"audio_tower.conv1.bias"' '"audio_tower.conv9.bias"'; model "a tensor that is missing" "$first|conv9"
header '{"__metadata__"' '["__metadata__"'; model "a header that is no JSON" 'model.safetensors'
fresh; echo '{"a": 1,}' >"$dir/m/config.json"; model "a config that is no JSON" 'config.json: '
fresh; echo '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}' >"$dir/m/config.json"; model "another architecture" 'config.json: .*llama'
fresh; sed -i -E 's/("intermediate_size": )83/\184/' "$dir/m/config.json"; model "sizes of the config that are not the tensors'" 'mlp\.[a-z_]+\.weight.*8[34]'
for kind in WordPiece Unigram WordLevel; do
    fresh; sed -i -E "s/\"type\": ?\"BPE\"/\"type\":\"$kind\"/" "$dir/m/tokenizer.json"
    model "a tokenizer of the kind $kind" "tokenizer.json: .*$kind.*byte-level BPE"
done
fresh; echo '{}' >"$dir/m/tokenizer.json"; model "an empty tokenizer" 'tokenizer.json: '
fresh; truncate -s 4000 "$dir/m/tokenizer.json"; model "a truncated tokenizer" 'tokenizer.json: '
fresh tests/goldens/like3b/checkpoint; truncate -s 1000 "$dir/m/model-00002-of-00003.safetensors"
model "a truncated shard" 'model-00002-of-00003.safetensors: .*truncated'
fresh tests/goldens/like3b/checkpoint; rm "$dir/m/model-00003-of-00003.safetensors"; model "a missing shard" 'model-00003-of-00003.safetensors'
exits "inspect model says so too" 4 'truncated' "$bin" inspect model "$(fresh; truncate -s 1000000 "$dir/m/model.safetensors"; echo "$dir/m")"

# --- media: input WHAT PATTERN OPTIONS...
input() { local what=$1 pattern=$2; shift 2; refuses "$what" 3 "error: .*$pattern" chat "$@"; }
printf 'just words, line after line\n' >"$dir/text.mp4"
: >"$dir/empty.mp4"
head -c 5000 $demo/av000.mp4 >"$dir/cut.mp4"
ffmpeg -v error -f lavfi -i anullsrc=r=16000:cl=mono -af atrim=end_sample=100 -c:a pcm_s16le "$dir/short.wav"
ffmpeg -v error -f lavfi -i color=c=red:s=64x64:r=1 -frames:v 1 "$dir/frame.mp4"
for kind in image audio video; do
    input "--$kind: no such file" 'nope.mp4: no such file' --$kind nope.mp4
    input "--$kind: a text named .mp4" 'text.mp4: neither sound, nor a picture, nor a film' --$kind "$dir/text.mp4"
    input "--$kind: an empty file" 'empty.mp4: ' --$kind "$dir/empty.mp4"
    input "--$kind: a folder" 'tests: a directory' --$kind tests
    input "--$kind: no regular file" '/dev/null: ' --$kind /dev/null
    input "--$kind: a playlist" 'bad_list.m3u8: ' --$kind $media/bad_list.m3u8
    input "--$kind: an address" 'fetches nothing from a network' --$kind http://example.org/a.mp4
    input "--$kind: a truncated mp4" 'cut.mp4: damaged or incomplete' --$kind "$dir/cut.mp4"
done
mkfifo "$dir/fifo"; input "a pipe in place of a file" 'fifo: ' --video "$dir/fifo"
input "a film of zero frames" 'bad_no_frames.mp4: .*no frames' --video $media/bad_no_frames.mp4
input "a film of one frame" 'frame.mp4: ' --video "$dir/frame.mp4"
input "no tracks" 'bad_no_tracks.mp4: ' --video $media/bad_no_tracks.mp4
input "an encrypted film" 'bad_encrypted.mp4: ' --video $media/bad_encrypted.mp4
input "an unknown codec" 'bad_codec.mp4: ' --video $media/bad_codec.mp4
input "a picture of 16384 x 16384" 'bad_bomb.png: 16384 x 16384 pixels.*limit of [0-9]+: scale it down' --image $media/bad_bomb.png
input "half a picture" 'bad_half.png: damaged' --image $media/bad_half.png
input "a picture too thin" 'bad_thin.png: ' --image $media/bad_thin.png
input "a sound of 0 samples" 'bad_no_samples.wav: .*no samples' --audio $media/bad_no_samples.wav
input "a sound too short for a token" 'short.wav: 100 samples of sound are too few: a token takes 321' --audio "$dir/short.wav"
input "a silent film that is to be heard" 'video000.mp4: the file has no sound: leave audio-in-video off' --video $demo/video000.mp4 --audio-in-video
input "a picture as a sound" 'image000.png: the file has no sound' --audio $demo/image000.png
input "a sound as a picture" 'phrase000.wav: has no picture' --image $demo/phrase000.wav
input "a sound as a film" 'phrase000.wav: has no film' --video $demo/phrase000.wav
input "the bad one of two" 'nope.png: no such file' --image $demo/image000.png --image nope.png
exits "inspect media: the same" 3 'text.mp4: neither' "$bin" inspect media "$dir/text.mp4"
exits "inspect media: no samples" 3 'no samples' "$bin" inspect media $media/bad_no_samples.wav
refuses "inspect media --json: nothing half" 3 'nope' "$bin" inspect media --json $demo/image000.png nope

# --- questions
refuses "no such prompt file" 3 'nope.txt: No such file' "$bin" chat -p @nope.txt
refuses "a folder as prompt" 3 'tests cannot be read: Is a directory' "$bin" chat -p @tests
head -c 17000000 /dev/zero | tr '\0' x >"$dir/long"; refuses "a prompt of 17 MB" 3 "more than 16777216 bytes" "$bin" chat -p "@$dir/long"
head -c 200000 "$dir/long" >"$dir/l2"; refuses "a text over the context" 2 'the prompt has [0-9]+ tokens .*the context holds [0-9]+' "$bin" chat -p "@$dir/l2"

# --- pruning
film="--video $demo/av000.mp4"
# wish WHAT PATTERN OPTIONS...
# shellcheck disable=SC2086
wish() { local what=$1 pattern=$2; shift 2; refuses "$what" 2 "$pattern" chat $film "$@"; }
for r in 0.05 0.9; do
    wish "a mean retention of $r" "a mean retention of $r cannot be reached: .*12 layers.* it lies from 0\.[0-9]+ to 0\.[0-9]+" --retention $r
done
read -r lo hi <<<"$(sed -nE 's/.*it lies from ([0-9.]+) to ([0-9.]+).*/\1 \2/p' "$dir/err")"
inside() { awk -v x="$1" -v d="$2" 'BEGIN { printf "%.4f", x + d }'; }
exits "just above the range's start" 0 '' chat $film --retention "$(inside "$lo" 0.002)"
exits "just below its end" 0 '' chat $film --retention "$(inside "$hi" -0.002)"
refuses "just below its start" 2 'cannot be reached' chat $film --retention "$(inside "$lo" -0.002)"
refuses "just above its end" 2 'cannot be reached' chat $film --retention "$(inside "$hi" 0.002)"
wish "p_init above p_final" 'p_init 0.5 is above p_final 0.2' --p-init 0.5 --p-final 0.2
wish "retention and p_final" 'exclude each other' --retention 0.4 --p-final 0.2
wish "an unknown policy" 'no policy "magic": this build has none, random, omnidrop' --policy magic
wish "a key that the policy lacks" 'policy random has no parameter "p_init"; it has retention' --policy random --p-init 0.1
wish "policy none with keys" 'policy none has no parameter "retention"; it has none' --policy none --retention 0.3
wish "a retention of 0" 'retention is 0: give' --retention 0
wish "a share above 1" 'p_final is 1.5: give a number from 0 to 1' --p-final 1.5
wish "a word in place of a number" 'beta is "steep": give a number' --beta steep
wish "a parameter without a value" '--policy-param kappa: give KEY=VALUE' --policy-param kappa
wish "an unknown parameter" 'has no parameter "colour"; it has' --policy-param colour=red
wish "a word that a parameter lacks" 'ref is "both": give dycoke or anchor' --policy-param ref=both
wish "rates that rise" 'rates rise at layer 1, from 0.5 to 1' --policy table --policy-param rates=0.5,1,1,1,1,1,1,1,1,1,1,1 --policy-param score=saliency
wish "no layer to leave before" 'exit needs at' --policy exit
refuses "a policy whose weights the checkpoint lacks" 2 'policy omnisift: this checkpoint has no trained selector: no tensor is named .*compressor\.\*; omnisift-lite needs none' chat $film --policy omnisift

# --- room: what the message says fits does, and what is a little more does not
refuses "a prompt over the context" 2 'the prompt has 246 tokens \(72 of film, 150 of sound\) and the answer up to 8; the context holds 230: --fps' \
    chat $film --max-model-len 230 --max-tokens 8
fps=$(sed -nE 's/.*--fps ([0-9.]+) fits.*/\1/p' "$dir/err")
exits "the largest fps fits" 0 '' chat $film --max-model-len 230 --max-tokens 8 --fps "$fps"
refuses "a larger one does not" 2 'the context holds 230' chat $film --max-model-len 230 --max-tokens 8 --fps "$(inside "$fps" 0.01)"
refuses "too long a sound" 2 'the prompt has 1[0-9]+ tokens .*the context holds 160: about [0-9.]+ s of the 5.7 s fit' \
    chat --audio $demo/speech000.wav --max-model-len 160 --max-tokens 8
s=$(sed -nE 's/.*about ([0-9.]+) s of.*/\1/p' "$dir/err")
ffmpeg -v error -i $demo/speech000.wav -t "$s" "$dir/part.wav"; ffmpeg -v error -i $demo/speech000.wav -t "$(inside "$s" 0.2)" "$dir/more.wav"
exits "so much of it fits" 0 '' chat --audio "$dir/part.wav" --max-model-len 160 --max-tokens 8
refuses "a little more does not" 2 'context' chat --audio "$dir/more.wav" --max-model-len 160 --max-tokens 8
refuses "a sound far over the context" 2 'speech000.wav: 5.7 s of sound are about 143 tokens, the context holds 64: .*transcribe' \
    chat --audio $demo/speech000.wav --max-model-len 64 --max-tokens 8
refuses "too long an answer" 2 'the answer up to 512; the context holds 300.*an answer of at most 54 tokens fits' chat $film --max-model-len 300
exits "so long a one fits" 0 '' chat $film --max-model-len 300 --max-tokens 54
refuses "one token more does not" 2 'context' chat $film --max-model-len 300 --max-tokens 55
refuses "too small a pool" 7 'needs 192 pages of KV \(246 tokens of prompt, up to 10 of answer, policy none\) and the pool has 180: a pool of 2 MB' \
    chat $film --max-tokens 10 --kv-bytes $((180 * 8192))
exits "as many pages as it needs" 0 '' chat $film --max-tokens 10 --kv-bytes $((192 * 8192))
refuses "one less" 7 'and the pool has 191' chat $film --max-tokens 10 --kv-bytes $((191 * 8192))
exits "pruned, it needs fewer" 0 '' chat $film --max-tokens 10 --kv-bytes $((150 * 8192)) --retention 0.4
refuses "a pool of no page" 2 'the page pool of 10 bytes holds 0 pages' chat --kv-bytes 10

# --- a script of questions ends where one fails, and says it once
printf 'What is four plus four?\n/image nope.png\nx\nHello!\n' | "$bin" chat >"$dir/stdout" 2>"$dir/err"
is "a conversation ends with the code of what failed" $? 3
is "with the answers before it" "$(cat "$dir/stdout")" eight
is "and one error" "$(grep -c error "$dir/err")" 1
printf '/movie x\nHello!\n' | "$bin" chat -q >"$dir/stdout" 2>"$dir/err"; is "an unknown word of the conversation" "$? $(wc -c <"$dir/stdout")" "2 0"
check "says which there are" grep -q '/movie: /image FILE' "$dir/err"
printf '/image\nHello!\n' | "$bin" chat -q >"$dir/stdout" 2>"$dir/err"; is "a word without its file" $? 2
exit $bad
