#!/bin/bash
# build.sh DIR [PROGRAM...]: builds Kubernetes programs and etcd from their Go modules
# into DIR (default programs: kube-apiserver etcd). No container registry, no release
# page, no go.mod of our own. VERSION chooses Kubernetes' version.
set -euo pipefail
VERSION=${VERSION:-1.36.3}
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
[ $# -gt 0 ] || set -- kube-apiserver etcd
mod=$out/mod; mkdir -p "$mod"
export GOWORK=off CGO_ENABLED=0 GOFLAGS=
src=$(go mod download -json "k8s.io/kubernetes@v$VERSION" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p') # in the module cache
# The staging modules are not in the module's zip; the same code is published as k8s.io/NAME.
sed -E "s#=> \./staging/src/(k8s\.io/[a-z-]+)#=> \1 v0.${VERSION#*.}#" "$src/go.mod" >"$mod/go.mod"
[ -f "$mod/go.sum" ] || install -m 644 "$src/go.sum" "$mod/go.sum"

IFS=. read -r major minor _ <<<"$VERSION"
version=k8s.io/component-base/version
for program; do
  case $program in
  etcd) package=go.etcd.io/etcd/server/v3 ;; # the version that this Kubernetes is tested with
  *) package=./cmd/$program ;;
  esac
  go build -C "$src" -mod=mod -modfile="$mod/go.mod" -trimpath -o "$out/$program" \
    -ldflags "-s -w -X $version.gitVersion=v$VERSION -X $version.gitMajor=$major -X $version.gitMinor=$minor" "$package"
done
