package redirect

import (
	"net/netip"
	"slices"
)

// This file turns a Spec into rules that belong to no backend: chains of (matches, actions). The backends only spell them.
// The order of the rules is the design; each rule's comment is shown to whoever lists the rules in a pod.

// Packet marks and the routing table of TPROXY. A packet with markTProxy is delivered locally whatever its destination;
// markHairpin makes prerouting give the proxy's own packets back to its inbound listener.
const (
	markTProxy   = 0x539 // 1337: the mark that Envoy's original_src filter is told to set, too
	markHairpin  = 0x53a
	tableTProxy  = 133
	allMarkBits  = 0xffffffff
	prioMangle   = -150
	prioNAT      = -100
	prioInvalid  = prioMangle - 1
	ctEstRelated = 2 | 4 // bits of nft's ct state: established, related
	ctInvalid    = 1
	ctAssured    = 4 // bit of nft's ct status
	tcpReset     = 4 // bit of TCP's flags
)

// The addresses from which Envoy opens its connections to the app. They are what tells such a connection apart from one
// that has to be captured; without them a captured connection would come back to Envoy for ever (Istio uses the same).
var (
	loopGuard4 = netip.MustParsePrefix("127.0.0.6/32")
	loopGuard6 = netip.MustParsePrefix("::6/128")
	loopback4  = netip.MustParsePrefix("127.0.0.0/8")
	loopback6  = netip.MustParsePrefix("::1/128")
)

// neverInbound are the sidecar's own listeners, reached directly from outside the pod.
var neverInbound = []uint16{PortMetrics, PortHealth, PortEnvoyMetrics}

// chain is a list of rules; a base chain (one with a hook) sees packets by itself, the others are gone to.
type chain struct {
	name     string
	table    string // iptables' table: "nat" or "mangle"
	kind     string // nftables' chain type: "nat", "filter", "route"; empty for a chain without hook
	hook     string // "prerouting" or "output"; empty for a chain without hook
	priority int
	rules    []rule
}

type rule struct {
	comment string
	match   []match
	do      []action
}

func (c *chain) add(comment string, do []action, match ...match) {
	c.rules = append(c.rules, rule{comment: comment, match: match, do: do})
}

// match is one condition; all of a rule's must hold.
type match struct {
	kind  matchKind
	not   bool
	name  string         // interface
	ports []uint16       // destination ports
	cidrs []netip.Prefix // of one family
	ids   []uint32       // UIDs or GIDs
	value uint32         // mark, state bits
}

type matchKind int

const (
	onFamily4 matchKind = iota
	onFamily6
	onIn
	onOut
	onSource
	onDestination
	onTCP // any port when ports is empty
	onUDP
	onReset // a TCP segment that refuses or aborts a connection
	onUID
	onGID
	onLocal       // destination is an address of this namespace
	onState       // connection tracking state, bits
	onAssured     // the connection has been answered, and the answer acknowledged
	onOriginal    // direction of the connection's first packet
	onOriginalTo  // destination port of the connection's first packet, before any translation
	onMark        // packet mark
	onConnMark    // connection mark
	onTransparent // belongs to a socket that TPROXY accepted
	onListener    // a socket of this namespace has the connection, or listens for it (nftables leaves out those that TPROXY accepted)
)

func in(name string) match          { return match{kind: onIn, name: name} }
func out(name string) match         { return match{kind: onOut, name: name} }
func from(p netip.Prefix) match     { return match{kind: onSource, cidrs: []netip.Prefix{p}} }
func to(list ...netip.Prefix) match { return match{kind: onDestination, cidrs: list} }
func tcp(ports ...uint16) match     { return match{kind: onTCP, ports: ports} }
func udp(ports ...uint16) match     { return match{kind: onUDP, ports: ports} }
func uid(ids ...uint32) match       { return match{kind: onUID, ids: ids} }
func gid(ids ...uint32) match       { return match{kind: onGID, ids: ids} }
func local() match                  { return match{kind: onLocal} }
func state(bits uint32) match       { return match{kind: onState, value: bits} }
func reset() match                  { return match{kind: onReset} }
func assured() match                { return match{kind: onAssured} }
func original() match               { return match{kind: onOriginal} }
func originalTo(port uint16) match  { return match{kind: onOriginalTo, ports: []uint16{port}} }
func mark(v uint32) match           { return match{kind: onMark, value: v} }
func connMark(v uint32) match       { return match{kind: onConnMark, value: v} }
func transparent() match            { return match{kind: onTransparent} }
func listener() match               { return match{kind: onListener} }
func not(m match) match             { m.not = true; return m }
func isFamily(kind matchKind) match { return match{kind: kind} }
func isIPv4(p netip.Prefix) bool    { return p.Addr().Is4() }
func isIPv6(p netip.Prefix) bool    { return !p.Addr().Is4() }
func only(l []netip.Prefix, f func(netip.Prefix) bool) (out []netip.Prefix) {
	for _, p := range l {
		if f(p) {
			out = append(out, p)
		}
	}
	return out
}

// action is what happens to a packet that matched.
type action struct {
	kind  actionKind
	chain string
	port  uint16
	value uint32
}

type actionKind int

const (
	doReturn actionKind = iota
	doAccept
	doDrop
	doGoto
	doRedirect     // NAT to a port of this namespace
	doTProxy       // to a listening socket without NAT, marked markTProxy, accepted
	doSetMark      // and go on with the next rule
	doSetConnMark  // and go on with the next rule
	doMarkFromConn // packet mark = connection mark, and go on
)

func leave() []action                 { return []action{{kind: doReturn}} }
func drop() []action                  { return []action{{kind: doDrop}} }
func goTo(chain string) []action      { return []action{{kind: doGoto, chain: chain}} }
func redirectTo(port uint16) []action { return []action{{kind: doRedirect, port: port}} }
func tproxyTo(port uint16) []action   { return []action{{kind: doTProxy, port: port}} }
func setMark(v uint32) []action       { return []action{{kind: doSetMark, value: v}} }
func setConnMark(v uint32) []action   { return []action{{kind: doSetConnMark, value: v}} }
func thenAccept(a []action) []action  { return append(a, action{kind: doAccept}) }

// Names of the chains. iptables shows them as WEFT_INBOUND and so on.
const (
	chainInvalid    = "invalid"
	chainInbound    = "inbound"
	chainReroute    = "reroute"
	chainHairpin    = "hairpin"
	chainOutput     = "output"
	chainToInbound  = "to_inbound"
	chainToHairpin  = "to_hairpin"
	chainToOutbound = "to_outbound"
	chainRefusal    = "refusal"
)

// allChains is every chain that any Spec may create: what Remove has to look for.
var allChains = []string{chainInvalid, chainInbound, chainReroute, chainHairpin, chainOutput, chainToInbound, chainToHairpin, chainToOutbound, chainRefusal}

// compile turns a valid Spec into its chains. A Spec of mode None has none.
func compile(s Spec) []chain {
	s = s.normalized()
	var chains []chain
	if s.Mode != Redirect && s.Mode != TProxy {
		return nil
	}
	if s.DropInvalid {
		c := chain{name: chainInvalid, table: "mangle", kind: "filter", hook: "prerouting", priority: prioInvalid}
		c.add("invalid packets would escape translation", drop(), not(in("lo")), state(ctInvalid))
		chains = append(chains, c)
	}
	if s.Mode == TProxy {
		chains = append(chains, tproxyInbound(s), tproxyHairpin(s))
		if len(s.RerouteInterfaces) > 0 {
			c := chain{name: chainReroute, table: "nat", kind: "nat", hook: "prerouting", priority: prioNAT}
			reroute(s, &c)
			chains = append(chains, c)
		}
		chains = append(chains, output(s),
			toInbound(s, chain{name: chainToInbound, table: "mangle"}, nil, tproxyTo(PortInbound)),
			toInbound(s, chain{name: chainToHairpin, table: "mangle"}, []uint16{PortProofLoop, PortProof}, setMark(markHairpin)))
	} else {
		chains = append(chains, redirectInbound(s), output(s),
			toInbound(s, chain{name: chainToInbound, table: "nat"}, []uint16{PortProofLoop, PortProof}, redirectTo(PortInbound)))
	}
	chains = append(chains, toOutbound(s))
	if s.Gate != 0 {
		chains = append(chains, refusal())
	}
	return oneFamily(s, chains)
}

// redirectInbound decides for each connection that comes from outside the pod.
func redirectInbound(s Spec) chain {
	c := chain{name: chainInbound, table: "nat", kind: "nat", hook: "prerouting", priority: prioNAT}
	c.add("decided in output already", leave(), in("lo"))
	gate(s, &c)
	c.add("kubelet's redirect proof, whatever the lists say", redirectTo(PortInbound), tcp(PortProof), local())
	for _, name := range s.ExcludeInterfaces {
		c.add("excluded interface", leave(), in(name))
	}
	reroute(s, &c)
	c.add("only passes through the pod", leave(), not(local()))
	c.add("by port", goTo(chainToInbound))
	return c
}

func reroute(s Spec, c *chain) {
	for _, name := range s.RerouteInterfaces {
		c.add("from inside the pod, so outbound", goTo(chainToOutbound), in(name))
	}
}

// toInbound says which ports are captured once it is clear that a connection is inbound. The hairpin uses it as well, so
// that a pod that calls itself meets the same ports as a caller from elsewhere.
func toInbound(s Spec, c chain, proof []uint16, capture []action) chain {
	if len(proof) > 0 {
		c.add("redirect proof, whatever the lists say", capture, tcp(proof...))
	}
	if s.IncludeInboundPorts.All {
		c.add("the sidecar's own and excluded ports", leave(), tcp(without(sorted(slices.Concat(neverInbound, s.ExcludeInboundPorts)), PortProof, PortProofLoop)...))
		c.add("all other inbound ports", capture, tcp())
		orNobody(&c)
		return c
	}
	if list := without(s.IncludeInboundPorts.List, neverInbound...); len(list) > 0 {
		c.add("included inbound ports", capture, tcp(list...))
		orNobody(&c)
	}
	return c
}

// orNobody closes the way that the last rule leaves open: while the proxy does not listen, nftables' tproxy ends only its rule, and the packet would
// reach the app around the proxy. iptables' TPROXY drops it by itself.
func orNobody(c *chain) {
	last := c.rules[len(c.rules)-1]
	if last.do[0].kind == doTProxy {
		c.add("no way in without the proxy", drop(), last.match...)
	}
}

// output decides for each connection that a process of the pod opens.
func output(s Spec) chain {
	c := chain{name: chainOutput, table: "nat", kind: "nat", hook: "output", priority: prioNAT}
	c.add("proxy to app: capturing it again would be a loop", leave(), from(loopGuard4), out("lo"))
	c.add("proxy to app: capturing it again would be a loop", leave(), from(loopGuard6), out("lo"))
	proxy := owners(s.ProxyUIDs, s.ProxyGIDs)
	if s.Mode == Redirect {
		for _, owner := range proxy {
			c.add("proxy to its own pod: inbound", goTo(chainToInbound), owner, out("lo"), not(to(loopback4)))
			c.add("proxy to its own pod: inbound", goTo(chainToInbound), owner, out("lo"), not(to(loopback6)))
		}
	}
	for _, owner := range proxy {
		c.add("proxy to the world", leave(), owner)
	}
	for _, owner := range owners(s.ExcludeUIDs, s.ExcludeGIDs) {
		c.add("excluded owner", leave(), owner)
	}
	for _, name := range s.ExcludeInterfaces {
		c.add("excluded interface", leave(), out(name))
	}
	if s.DNS {
		c.add("DNS capture", redirectTo(PortDNS), udp(53))
		c.add("DNS capture", redirectTo(PortDNS), tcp(53))
	}
	c.add("within the pod", leave(), out("lo"))
	c.add("by port and destination", goTo(chainToOutbound))
	return c
}

func owners(uids, gids []uint32) (out []match) {
	if len(uids) > 0 {
		out = append(out, uid(uids...))
	}
	if len(gids) > 0 {
		out = append(out, gid(gids...))
	}
	return out
}

// toOutbound says which destinations are captured once it is clear that a connection leaves the pod.
func toOutbound(s Spec) chain {
	c := chain{name: chainToOutbound, table: "nat"}
	if len(s.ExcludeOutboundPorts) > 0 {
		c.add("excluded outbound ports", leave(), tcp(s.ExcludeOutboundPorts...))
	}
	for _, family := range []func(netip.Prefix) bool{isIPv4, isIPv6} {
		if list := only(s.ExcludeOutboundCIDRs, family); len(list) > 0 {
			c.add("excluded destinations", leave(), to(list...))
		}
	}
	if s.IncludeOutboundCIDRs.All {
		c.add("all other destinations", redirectTo(PortOutbound), tcp())
		return c
	}
	if len(s.IncludeOutboundPorts) > 0 {
		c.add("included ports, to anywhere", redirectTo(PortOutbound), tcp(s.IncludeOutboundPorts...))
	}
	for _, family := range []func(netip.Prefix) bool{isIPv4, isIPv6} {
		if list := only(s.IncludeOutboundCIDRs.List, family); len(list) > 0 {
			c.add("included destinations", redirectTo(PortOutbound), to(list...), tcp())
		}
	}
	return c
}

// tproxyInbound gives packets to the inbound listener as they are. Each packet of a connection passes here, not only the first, so the
// chain also has to recognise the later ones.
func tproxyInbound(s Spec) chain {
	c := chain{name: chainInbound, table: "mangle", kind: "filter", hook: "prerouting", priority: prioMangle}
	c.add("proxy to app with the client's address: remember the connection", setConnMark(markTProxy), in("lo"), mark(markTProxy))
	c.add("proxy to its own pod: inbound", tproxyTo(PortInbound), in("lo"), mark(markHairpin), tcp())
	c.add("within the pod", leave(), in("lo"))
	gate(s, &c)
	c.add("kubelet's redirect proof, whatever the lists say", tproxyTo(PortInbound), tcp(PortProof), local())
	for _, name := range s.ExcludeInterfaces {
		c.add("excluded interface", leave(), in(name))
	}
	for _, name := range s.RerouteInterfaces {
		c.add("from inside the pod, see "+chainReroute, leave(), in(name))
	}
	c.add("connections that the proxy has accepted", thenAccept(setMark(markTProxy)), tcp(), transparent())
	c.add("answers to connections of the pod", leave(), state(ctEstRelated))
	c.add("only passes through the pod", leave(), not(local()))
	c.add("by port", goTo(chainToInbound))
	return c
}

// tproxyHairpin marks packets that have to take another route: answers of the app to a client whose address the proxy used, and the
// proxy's connections to its own pod. A transparent listener does not see the original destination of a NATed
// connection, so the hairpin cannot use NAT here.
func tproxyHairpin(s Spec) chain {
	c := chain{name: chainHairpin, table: "mangle", kind: "route", hook: "output", priority: prioMangle}
	c.add("proxy to app: capturing it again would be a loop", leave(), from(loopGuard4), out("lo"))
	c.add("proxy to app: capturing it again would be a loop", leave(), from(loopGuard6), out("lo"))
	c.add("app to the proxy that used the client's address", thenAccept([]action{{kind: doMarkFromConn}}), connMark(markTProxy))
	for _, owner := range owners(s.ProxyUIDs, s.ProxyGIDs) {
		c.add("proxy to its own pod: inbound", goTo(chainToHairpin), mark(0), owner, out("lo"), original(), not(to(loopback4)))
		c.add("proxy to its own pod: inbound", goTo(chainToHairpin), mark(0), owner, out("lo"), original(), not(to(loopback6)))
	}
	return c
}

// oneFamily leaves the other family's packets alone, and its rules out, when a Spec is for one family only.
func oneFamily(s Spec, chains []chain) []chain {
	if s.IPv4 && s.IPv6 {
		return chains
	}
	wanted, other := family4, onFamily6
	if s.IPv6 {
		wanted, other = family6, onFamily4
	}
	for i := range chains {
		c := &chains[i]
		c.rules = slices.DeleteFunc(c.rules, func(r rule) bool { return r.family()&wanted == 0 })
		if c.hook != "" {
			c.rules = slices.Insert(c.rules, 0, rule{comment: "this family is not captured", match: []match{isFamily(other)}, do: leave()})
		}
	}
	return chains
}

// family is a set of IP families.
type family int

const (
	family4 family = 1 << iota
	family6
)

// family says to which families a rule can apply.
func (r rule) family() family {
	f := family4 | family6
	for _, m := range r.match {
		switch {
		case m.kind == onFamily4, len(m.cidrs) > 0 && isIPv4(m.cidrs[0]):
			f &= family4
		case m.kind == onFamily6, len(m.cidrs) > 0:
			f &= family6
		}
	}
	return f
}

func without(list []uint16, drop ...uint16) (out []uint16) {
	for _, p := range list {
		if !slices.Contains(drop, p) {
			out = append(out, p)
		}
	}
	return out
}
