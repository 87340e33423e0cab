package envoy

import (
	"maps"
	"slices"
	"strings"
)

// patchLimit is for how many resources a Set is changed in place rather than put together again.
const patchLimit = 256

// A patch makes the next Set of a scope from the last one when only contents changed: no names, domains or listeners that hosts share. That is
// nearly every change, and then the cost must not grow with the mesh.
type patch struct {
	lazy  bool
	parts *outboundParts
	set   *Set // the next one; nil when nothing changed
	own   [NumTypes]bool
	ports map[uint16]bool // those of parts that are ours to change
}

// patched returns the next Set, or nil when it has to be built. It completes parts.
func (w *World) patched(v *view, old *Set, former, parts *outboundParts) *Set {
	if old == nil || v.client.inline || former.config != parts.config || len(former.bundles) != len(parts.bundles) {
		return nil
	}
	p := patch{lazy: v.client.lazy, parts: parts, ports: map[uint16]bool{}}
	parts.ports, parts.beside = maps.Clone(former.ports), former.beside
	n := 0
	for i, b := range parts.bundles {
		if o := former.bundles[i]; o != b {
			if n++; n > patchLimit || !p.bundle(old, o, b) {
				return nil
			}
		}
	}
	if !p.hosts(old, former.strangers.hosts, parts.strangers.hosts) {
		return nil
	}
	if p.set == nil {
		return old
	}
	p.set.Version = w.snap.Version()
	return p.set
}

func (p *patch) bundle(old *Set, before, after *bundle) bool {
	if before.svc.Host != after.svc.Host || len(before.resources) != len(after.resources) ||
		!slices.EqualFunc(before.chains, after.chains, sharedChain.equal) || !slices.EqualFunc(before.beside, after.beside, slices.Equal) {
		return false
	}
	for i, r := range after.resources {
		if o := before.resources[i]; o != r && !p.resource(old, o, r) {
			return false
		}
	}
	return p.hosts(old, before.vhosts, after.vhosts)
}

// resource puts one in the place of another of its name.
func (p *patch) resource(old *Set, before, after *Resource) bool {
	t := after.Type
	if before.Type != t || before.Name != after.Name {
		return false
	}
	if p.lazy && (t == Cluster || t == Endpoints || t == VirtualHost) {
		return true // these are asked for
	}
	if p.set == nil {
		p.set = &Set{Scope: old.Scope, Resources: old.Resources}
	}
	i, found := slices.BinarySearchFunc(p.set.Resources[t], after.Name, func(r *Resource, n string) int { return strings.Compare(r.Name, n) })
	if !found || p.set.Resources[t][i].Version != before.Version {
		return false // another host's, with the same name
	}
	if !p.own[t] {
		p.own[t] = true
		p.set.Resources[t] = slices.Clone(p.set.Resources[t])
	}
	p.set.Resources[t][i] = after
	return true
}

func (p *patch) hosts(old *Set, before, after []portHost) bool {
	if len(before) != len(after) {
		return false
	}
	for i, h := range after {
		if o := before[i]; o != h && (o.port != h.port || !p.host(old, h.port, o.virtualHost, h.virtualHost)) {
			return false
		}
	}
	return true
}

func (p *patch) host(old *Set, number uint16, before, after *virtualHost) bool {
	if !sameService(before, after) || !sameDomains(before, after) {
		return false
	}
	port := p.parts.ports[number]
	place := slices.Index(port.hosts, before)
	if place < 0 || len(port.owners) != len(port.hosts) {
		return false
	}
	if !p.ports[number] {
		p.ports[number] = true
		fresh := *port
		fresh.hosts, fresh.owners, fresh.asked = slices.Clone(port.hosts), slices.Clone(port.owners), slices.Clone(port.asked)
		if port.names != nil {
			names := *port.names
			names.hosts = fresh.hosts
			fresh.names = &names
		}
		port = &fresh
		p.parts.ports[number] = port
	}
	port.hosts[place] = after
	if o := port.owners[place]; o != nil {
		port.owners[place] = after.with(o.domains)
		if !p.resource(old, o.Resource, port.owners[place].Resource) {
			return false
		}
	}
	if port.asked != nil && port.asked[place] != nil {
		port.asked[place] = after.with(port.asked[place].domains)
	}
	return true
}
