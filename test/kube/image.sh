#!/usr/bin/env bash
# Builds what goes into the image by running the Dockerfile's own RUN lines, where
# there is no container engine:  image.sh FOLDER  makes FOLDER/out, FOLDER/sbom.
# With SBOM=off without the bills of material, which take a minute more.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
to=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$root"
VERSION=$(git describe --tags --always --dirty 2>/dev/null || echo unknown)
SBOM_VERSION=$(sed -n 's/^ARG SBOM=//p' Dockerfile)

# run FIRST: the RUN line that begins so, below FOLDER.
run() {
	sed -n "/^RUN $1/,/[^\\\\]$/p" Dockerfile | sed "s/^RUN //;s|/out\b|$to/out|g;s|/sbom\b|$to/sbom|g" |
		VERSION=$VERSION SBOM=$SBOM_VERSION bash -e
}
run "CGO_ENABLED=0 go build"
[[ ${SBOM-} == off ]] || run "mkdir -p .sbom"
for program in writer projector rebuild; do
	! readelf -lW "$to/out/$program" | grep -q INTERP || { echo "$program is not static" >&2; exit 1; }
done
