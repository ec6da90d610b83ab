#!/usr/bin/env bash
# Name the images of an overlay by digest: manifests/pin.sh OVERLAY IMAGE=REPOSITORY@sha256:DIGEST...
#   manifests/pin.sh local crystalforge/train=localhost:5001/crystalforge/train@sha256:4c1b...
# IMAGE is the name in manifests/base; what is not named keeps its digest. Without IMAGEs: lists what is pinned.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
file=$(dirname "$0")/overlays/$1/images/kustomization.yaml
[ -f "$file" ] || { echo "error: no overlay '$1' ($file)" >&2; exit 2; }
shift
for pin in "$@"; do
  [[ $pin =~ ^([^=@]+)=([^=@]+)@(sha256:[0-9a-f]{64})$ ]] || { echo "error: '$pin' is not IMAGE=REPOSITORY@sha256:<64 hex digits>" >&2; exit 2; }
  image=${BASH_REMATCH[1]} repository=${BASH_REMATCH[2]} digest=${BASH_REMATCH[3]}
  grep -qF -- "- name: $image" "$file" || { echo "error: $file has no image '$image'" >&2; exit 2; }
  awk -v image="$image" -v repository="$repository" -v digest="$digest" '
    /^  - name:/ { here = ($3 == image) }
    here && /^    newName:/ { $0 = "    newName: " repository }
    here && /^    digest:/ { $0 = "    digest: " digest }
    { print }' "$file" >"$file.new"
  mv "$file.new" "$file"
done
awk '/^    newName:/ { name = $2 } /^    digest:/ { print name "@" $2 }' "$file"
if grep -q "digest: sha256:0\{64\}" "$file"; then echo "zeros are still to be filled in" >&2; fi
