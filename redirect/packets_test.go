package redirect

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/redirect/nstest"
)

// connection is one attempt of somebody to reach something, and what a user expects to happen to it.
type connection struct {
	name    string
	ns      string // "world", "pod", "vm"
	uid     int
	gid     int
	network string
	from    string // source address; empty: the kernel's choice
	to      string
	want    string
}

// connections is what is tried for each Spec, with the outcome that the Spec promises. It says the promise in the words of the Spec's documentation
// and knows nothing of rules.
func connections(s Spec) []connection {
	s = s.normalized()
	capturing := s.Mode != None
	var out []connection
	add := func(c connection) {
		if c.network == "" {
			c.network = "tcp"
		}
		c.name = fmt.Sprintf("%s/uid%d gid%d %s %s to %s", c.ns, c.uid, c.gid, c.network, c.from, c.to)
		out = append(out, c)
	}
	family := func(addr string) bool {
		return capturing && (netip.MustParseAddr(addr).Is4() && s.IPv4 || netip.MustParseAddr(addr).Is6() && s.IPv6)
	}
	inboundPort := func(port uint16) bool {
		if s.IncludeInboundPorts.All {
			return !slices.Contains(s.ExcludeInboundPorts, port) && !slices.Contains([]uint16{15020, 15021, 15090}, port)
		}
		return slices.Contains(s.IncludeInboundPorts.List, port) && !slices.Contains([]uint16{15020, 15021, 15090}, port)
	}
	matches := func(patterns []string, name string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			stem, wild := strings.CutSuffix(p, "*")
			return p == name || wild && strings.HasPrefix(name, stem)
		})
	}
	contains := func(list []netip.Prefix, addr string) bool {
		return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(addr)) })
	}
	hostPort := func(addr string, port uint16) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

	// From the world to the pod.
	for _, target := range []struct{ addr, iface, client string }{{podV4, "eth0", worldV4}, {podV6, "eth0", worldV6}, {podEth1, "eth1", worldEth1}} {
		for _, port := range []uint16{8080, 8081, 9000, 15020, 15021, 15090, PortProof} {
			to := hostPort(target.addr, port)
			captured := family(target.addr) && (port == PortProof || inboundPort(port) && !matches(s.ExcludeInterfaces, target.iface))
			want := "app " + to + " from " + target.client
			switch {
			case captured && s.Mode == TProxy:
				want = "inbound " + to + " from " + target.client
			case captured:
				want = "inbound " + to
			case port == PortProof:
				want = "refused"
			}
			add(connection{ns: "world", to: to, want: want})
		}
	}
	// From the pod to the world.
	destinationCaptured := func(addr string, port uint16) bool {
		if slices.Contains(s.ExcludeOutboundPorts, port) || contains(s.ExcludeOutboundCIDRs, addr) {
			return false
		}
		return s.IncludeOutboundCIDRs.All || contains(s.IncludeOutboundCIDRs.List, addr) || slices.Contains(s.IncludeOutboundPorts, port)
	}
	owners := []struct{ uid, gid int }{{0, 0}, {1000, 1000}, {1001, 2000}, {1337, 1337}, {1337, 0}, {1338, 1338}, {5, 1337}}
	isProxy := func(uid, gid int) bool {
		return slices.Contains(s.ProxyUIDs, uint32(uid)) || slices.Contains(s.ProxyGIDs, uint32(gid))
	}
	isExcluded := func(uid, gid int) bool {
		return slices.Contains(s.ExcludeUIDs, uint32(uid)) || slices.Contains(s.ExcludeGIDs, uint32(gid))
	}
	for _, addr := range append([]string{worldEth1}, serverAddrs...) {
		iface := "eth0"
		if addr == worldEth1 {
			iface = "eth1"
		}
		for _, o := range owners {
			spared := !family(addr) || isProxy(o.uid, o.gid) || isExcluded(o.uid, o.gid) || matches(s.ExcludeInterfaces, iface)
			for _, port := range []uint16{80, 443, 53} {
				to := hostPort(addr, port)
				want := "world " + to
				switch {
				case spared:
				case port == 53 && s.DNS:
					want = "dns " + to
				case destinationCaptured(addr, port):
					want = "outbound " + to
				}
				if o.uid == 0 || port == 80 {
					add(connection{ns: "pod", uid: o.uid, gid: o.gid, to: to, want: want})
				}
			}
			if addr == worldEth1 {
				continue // no UDP server there
			}
			want := "world"
			if !spared && s.DNS {
				want = "dns"
			}
			if o.uid == 0 || o.uid == 1337 || o.uid == 1000 {
				add(connection{ns: "pod", uid: o.uid, gid: o.gid, network: "udp", to: hostPort(addr, 53), want: want})
			}
		}
	}
	// Within the pod.
	for _, addr := range []string{podV4, podV6} {
		guard := "127.0.0.6"
		if addr == podV6 {
			guard = "::6"
		}
		for _, o := range owners {
			for _, port := range []uint16{8080, 9000, PortHealth, PortProofLoop, PortProof} {
				to := hostPort(addr, port)
				want := "app " + to + " from " + addr
				proof := port == PortProof || port == PortProofLoop
				if proof {
					want = "refused"
				}
				if family(addr) && isProxy(o.uid, o.gid) && (proof || inboundPort(port)) {
					want = "inbound " + to
					if s.Mode == TProxy {
						want += " from " + addr
					}
				}
				add(connection{ns: "pod", uid: o.uid, gid: o.gid, to: to, want: want})
				if family(addr) && !proof {
					// The proxy's own way to the app is never captured again.
					add(connection{ns: "pod", uid: o.uid, gid: o.gid, from: guard, to: to, want: "app " + to + " from " + guard})
				}
			}
		}
		loopback := map[string]string{podV4: "127.0.0.1", podV6: "::1"}[addr]
		for _, o := range owners {
			to := hostPort(loopback, 8080)
			add(connection{ns: "pod", uid: o.uid, gid: o.gid, to: to, want: "app " + to + " from " + loopback})
		}
	}
	// From the machine inside the pod.
	for _, port := range []uint16{80, 443} {
		to := hostPort(serverAddrs[0], port)
		want := "world " + to
		if s.IPv4 && capturing && matches(s.RerouteInterfaces, "tap0") && destinationCaptured(serverAddrs[0], port) {
			want = "outbound " + to
		}
		add(connection{ns: "vm", to: to, want: want})
	}
	return out
}

// backends are what the kernel is programmed with.
func backends(t *testing.T) []Backend {
	kit.Netfilter(t)
	return []Backend{nft{}, newIPTables()}
}

func TestRealPacketsGoWhereTheSpecSays(t *testing.T) {
	kit.Root(t)
	all := specs(t)
	for _, b := range backends(t) {
		for _, tproxy := range []bool{false, true} {
			// One world for all: each Spec also replaces the one before it.
			n := newTestNet(t, tproxy)
			for _, name := range slices.Sorted(maps.Keys(all)) {
				s := all[name]
				if (s.Mode == TProxy) != tproxy {
					continue
				}
				t.Run(b.Name()+"/"+name, func(t *testing.T) {
					n.pod.Do(func() {
						if err := b.Apply(s); err != nil {
							t.Errorf("apply: %v", err)
						}
						// Connections of the former Spec keep its translation, as they should; a new one may by chance have the same ports.
						if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
							t.Errorf("forget former connections: %v", err)
						}
					})
					for _, c := range connections(s) {
						if got := n.try(c); !sameOutcome(got, c.want) {
							t.Errorf("%s: got %q, want %q", c.name, got, c.want)
						}
					}
					n.pod.Do(func() {
						if drift, err := b.Verify(s); err != nil || len(drift) > 0 {
							t.Errorf("verify right after apply: %v, %q", err, drift)
						}
					})
				})
			}
		}
	}
}

func (n *testNet) try(c connection) (got string) {
	ns := map[string]*nstest.NS{"world": n.world, "pod": n.pod, "vm": n.vm}[c.ns]
	ns.As(c.uid, c.gid, func() { got = ask(c.network, c.from, c.to) })
	return got
}

// sameOutcome ignores the client's port, which the kernel chooses.
func sameOutcome(got, want string) bool {
	if got == want {
		return true
	}
	head, addr, ok := strings.Cut(got, " from ")
	if !ok {
		return false
	}
	host, _, err := net.SplitHostPort(addr)
	return err == nil && head+" from "+host == want
}
