#!/usr/bin/env bash
# Build the images: images/build.sh [train] [rewards]; none named: both.
# TOOL=docker|podman|buildah (default: the first one found)   TAG=0.1.0   REGISTRY=crystalforge
# PYTHON_IMAGE, TRITON_IMAGE: base images, for places without a public registry (pin them by digest for a release).
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL: where Python packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=${TOOL:-$(for name in docker podman buildah; do command -v "$name" && break; done || true)}
[ -n "$tool" ] || { echo "error: none of docker, podman, buildah is installed" >&2; exit 2; }
(($#)) || set -- train rewards
for image in "$@"; do
  [ -f "images/$image.Containerfile" ] || { echo "error: no image '$image': choose train or rewards" >&2; exit 2; }
  arguments=(--file "images/$image.Containerfile" --tag "${REGISTRY:-crystalforge}/$image:${TAG:-0.1.0}")
  # An argument that a Containerfile does not declare is an error for some tools: each file gets its own.
  for name in PYTHON_IMAGE TRITON_IMAGE PIP_INDEX_URL PIP_EXTRA_INDEX_URL; do
    [ -z "${!name:-}" ] || ! grep -q "^ARG $name" "images/$image.Containerfile" || arguments+=(--build-arg "$name=${!name}")
  done
  # OCI images have no HEALTHCHECK; docker's format has.
  case $(basename "$tool") in podman|buildah) arguments+=(--format docker) ;; esac
  "$tool" build "${arguments[@]}" .
done
