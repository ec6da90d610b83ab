#!/usr/bin/env bash
# Build the images: images/build.sh [train] [rewards]; none named: both.
# TOOL=docker|podman|buildah (default: the first one found)   TAG=0.1.0   REGISTRY=crystalforge
# PYTHON_IMAGE, TRITON_IMAGE: base images, for places without a public registry.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${TOOL:-$(for name in docker podman buildah; do command -v "$name" && break; done || true)}
[ -n "$tool" ] || { echo "error: none of docker, podman, buildah is installed" >&2; exit 2; }
(($#)) || set -- train rewards
for image in "$@"; do
  [ -f "images/$image.Containerfile" ] || { echo "error: no image '$image': choose train or rewards" >&2; exit 2; }
  arguments=(--file "images/$image.Containerfile" --tag "${REGISTRY:-crystalforge}/$image:${TAG:-0.1.0}")
  [ -z "${PYTHON_IMAGE:-}" ] || arguments+=(--build-arg "PYTHON_IMAGE=$PYTHON_IMAGE")
  [ -z "${TRITON_IMAGE:-}" ] || arguments+=(--build-arg "TRITON_IMAGE=$TRITON_IMAGE")
  "$(basename "$tool")" build "${arguments[@]}" .
done
