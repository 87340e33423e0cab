package mesh

import (
	"net/netip"
	"strings"
)

// ResolveHost turns a short service name into an FQDN as seen from the namespace
// of the object that mentions it: "reviews" in namespace default is
// "reviews.default.svc.cluster.local". A name with a dot, "*", and an IP address are
// complete already: "reviews.prod" stays as it is, as in Istio.
// (Istio API: VirtualService.hosts, "short names are interpreted based on the namespace of the rule".)
func ResolveHost(host, namespace, clusterDomain string) string {
	if host == "" || host == "*" || strings.Contains(host, ".") {
		return host
	}
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err == nil {
			return host
		}
	}
	return host + "." + namespace + ".svc." + clusterDomain
}

// HostMatches reports whether a host pattern of the configuration covers host. A pattern
// is a name, "*.suffix", or "*". A wildcard stands for one label or more:
// "*.example.com" covers "a.b.example.com" and not "example.com".
func HostMatches(pattern, host string) bool {
	if !strings.HasPrefix(pattern, "*") {
		return pattern == host
	}
	suffix := pattern[1:]
	return len(host) > len(suffix) && strings.HasSuffix(host, suffix) || pattern == host
}

// HostsOverlap reports whether some name is covered by both patterns: what decides
// whether a VirtualService's host belongs to a Gateway server's host.
func HostsOverlap(a, b string) bool {
	aw, bw := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case aw && bw:
		return strings.HasSuffix(a[1:], b[1:]) || strings.HasSuffix(b[1:], a[1:])
	case aw:
		return HostMatches(a, b)
	case bw:
		return HostMatches(b, a)
	}
	return a == b
}

// CompareHosts orders host patterns from the most specific to the least: names before
// wildcards, longer wildcards before shorter ones, "*" last, then by alphabet.
func CompareHosts(a, b string) int {
	aw, bw := strings.HasPrefix(a, "*"), strings.HasPrefix(b, "*")
	switch {
	case aw != bw && aw:
		return 1
	case aw != bw:
		return -1
	case aw && len(a) != len(b):
		return len(b) - len(a)
	}
	return strings.Compare(a, b)
}

// resolveGateway turns the name of a Gateway, as VirtualServices write it, into
// "namespace/name"; "mesh" stays. Understood are "name", "namespace/name", "./name" and
// the old "name.namespace.svc.cluster.local" that Flagger still writes.
func resolveGateway(name, namespace string) string {
	if name == "mesh" {
		return name
	}
	if ns, n, ok := strings.Cut(name, "/"); ok {
		if ns == "." {
			ns = namespace
		}
		return ns + "/" + n
	}
	if n, rest, ok := strings.Cut(name, "."); ok {
		ns, _, _ := strings.Cut(rest, ".")
		return ns + "/" + n
	}
	return namespace + "/" + name
}
