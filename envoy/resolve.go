package envoy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Resolve says what a proxy means by a name that it asked for: a Resource in its Sets, whose Name may be another. It is nil when
// the Sets hold nothing for it, as for a name that is not in the Demand, or that is Nonsense.
func (w *World) Resolve(p Proxy, t Type, name string) *Resource {
	sets := w.Sets(p)
	if p.Demand != nil && !p.Inline && p.Kind != Router && t == VirtualHost {
		table, _, _ := strings.Cut(name, "/")
		if !p.Demand.Has(t, name) && !p.Demand.Has(t, table+everyHost) {
			return nil
		}
		class, c := w.outboundScope(p)
		s := w.askedScope(p.Demand, class, c)
		h := s.host(name, s)
		if h == nil {
			return nil
		}
		name = h.Name
	}
	for _, s := range sets {
		i, found := slices.BinarySearchFunc(s.Resources[t], name, func(r *Resource, n string) int { return strings.Compare(r.Name, n) })
		if found {
			return s.Resources[t][i]
		}
	}
	return nil
}

// Means classifies a name that an on-demand proxy asks for, whether it is in the proxy's Demand or not. Types that nobody asks for by name
// have no meaning.
func (w *World) Means(p Proxy, t Type, name string) Meaning {
	class, _ := w.outboundScope(p)
	parts := class.parts.(*outboundParts)
	switch t {
	case VirtualHost:
		port, host, ok := splitAsked(name)
		if !ok {
			return Nonsense
		}
		table := parts.ports[port]
		if table == nil || table.names == nil {
			return Stranger
		}
		if place, _, found := table.names.lookup(host); !found || place == len(table.hosts)-1 {
			return Stranger
		}
		return Known
	case Cluster:
		host, ok := splitCluster(name)
		switch {
		case !ok:
			return Nonsense
		case parts.realCluster(name, host) == nil:
			return Stranger
		}
		return Known
	}
	return Nonsense
}

// splitAsked takes "<port>/<authority>" apart, as an app wrote it, and gives the authority's host. It accepts nothing that a client could not
// have meant as the name or address of a host: names become domains of route tables, where "*" would mean everybody.
func splitAsked(asked string) (port uint16, host string, ok bool) {
	table, authority, ok := strings.Cut(asked, "/")
	if !ok {
		return 0, "", false
	}
	if port, ok = parsePort(table); !ok {
		return 0, "", false
	}
	host, ok = hostOf(authority)
	return port, host, ok
}

// parsePort accepts what strconv.Itoa writes.
func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0 && s[0] != '0' && s[0] != '+'
}

// maxHost is the longest name that DNS knows.
const maxHost = 253

// hostOf is an authority, in lower case, without its port: a name, an IPv4 address, or an IPv6 address in brackets.
func hostOf(authority string) (string, bool) {
	host := authority
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && i > strings.LastIndexByte(authority, ']') {
		host = authority[:i]
		if port := authority[i+1:]; len(port) == 0 || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			return "", false
		}
	}
	if inner, v6 := strings.CutPrefix(host, "["); v6 {
		inner, closed := strings.CutSuffix(inner, "]")
		a, err := netip.ParseAddr(inner)
		return host, closed && err == nil && a.Is6() && a.Zone() == "" && host == lower(host)
	}
	if host == "" || len(host) > maxHost || host[0] == '.' {
		return "", false
	}
	for i := range len(host) {
		if c := host[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
			return "", false
		}
	}
	return host, true
}

// splitCluster gives the host of "outbound|9080|v1|reviews.default.svc.cluster.local". Such names come from routes that the proxy was given, or pretend
// to.
func splitCluster(name string) (host string, ok bool) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[0] != "outbound" || parts[3] == "" || len(name) > 2*maxHost {
		return "", false
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return "", false
		}
	}
	_, ok = parsePort(parts[1])
	return parts[3], ok
}
