#!/bin/sh
# fetch-netfilter.sh DIR: unpacks Debian's iptables and nft beside us: the tests apply rules with the one and
# compare what we print with the other.
# Nothing is installed: the packages are only downloaded and their files extracted.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
packages="iptables libip4tc2 libip6tc2 libxtables12 libmnl0 libnfnetlink0 libnetfilter-conntrack3 libnftnl11 nftables libnftables1 libjansson4 libgmp10 libedit2 libbsd0 libmd0"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
chmod 755 "$tmp"
cd "$tmp"
if ! apt-get download -qq $packages 2>/dev/null; then
	apt-get update -qq
	apt-get download -qq $packages
fi
for deb in *.deb; do dpkg-deb -x "$deb" "$tmp/root"; done

mkdir -p "$dir/sbin" "$dir/lib"
cp -a "$tmp"/root/usr/sbin/*tables* "$tmp"/root/usr/sbin/nft "$dir/sbin/"
cp -a "$tmp"/root/usr/lib/*/*.so* "$dir/lib/" 2>/dev/null || true
cp -a "$tmp"/root/lib/*/*.so* "$dir/lib/" 2>/dev/null || true
rm -rf "$dir/xtables"
cp -a "$(dirname "$(find "$tmp/root" -name libxt_owner.so | head -n 1)")" "$dir/xtables"
for t in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
	[ -e "$dir/sbin/$t" ] || ln -s xtables-nft-multi "$dir/sbin/$t"
done
touch "$dir/complete"
