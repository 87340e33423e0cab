// Package vip makes Service addresses work inside one network namespace, with
// nftables through netlink: each VIP and port is spread at random over its
// endpoints by DNAT, for forwarded packets (pods) and for the namespace's own
// processes. It owns two tables and replaces them in one transaction; it knows
// nothing of Kubernetes objects. Open vip.go first.
package vip
