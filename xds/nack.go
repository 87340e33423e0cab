package xds

import (
	"slices"

	"github.com/weft-mesh/weft/envoy"
)

// group is a part of a response that was rejected as a whole.
type group struct {
	resources []*envoy.Resource
	previous  []*envoy.Set
	removed   []string // virtual hosts: what has to go with it
	attempt   int      // how often it was rejected standing alone
}

// refusal is a resource that this proxy does not accept at this version.
type refusal struct {
	version string
	message string
}

// answer handles an ACK or NACK of a response in flight.
func (d *delta) answer(t envoy.Type, r *request, i int) {
	ty := &d.types[t]
	resp := ty.inflight[i]
	ty.inflight = slices.Delete(ty.inflight, i, i+1)
	if !r.failed {
		ty.acked = resp.nonce
		d.s.accepted(t, resp)
		return
	}
	d.s.server.metrics.rejected(t)
	list := slices.Concat(resp.lists...)
	if t == envoy.Route {
		// A table that was not taken has not heard of its virtual hosts either.
		for _, table := range list {
			d.tables = add(d.tables, table.Name)
		}
	}
	if t != envoy.VirtualHost {
		resp.removed = nil // either sent alone, or names that were asked for and are not there
	} else if len(list) > 0 {
		d.app.hosts = append(d.app.hosts, resp.answers...)
	}
	switch {
	case len(list) == 0:
		d.s.server.log.Warn("proxy rejected a removal", "proxy", d.s.name(), "type", shortName(t), "error", r.failure)
	case len(list) == 1 && t == envoy.VirtualHost && resp.attempt == 0 && slices.ContainsFunc(ty.groups, func(g group) bool { return g.attempt == 0 }):
		// Perhaps it takes a domain from one that is in another part.
		ty.groups = append(ty.groups, group{list, resp.previous, resp.removed, 1})
	case len(list) == 1:
		d.refuse(t, list[0], resp.previous, r.failure)
		if t == envoy.VirtualHost {
			// Perhaps there is no other in its table, whose listener waits for a word.
			resp.removed = append(resp.removed, tableOf(list[0].Name)+nothing)
		}
		if len(resp.removed) > 0 {
			ty.groups = append(ty.groups, group{nil, resp.previous, resp.removed, 0})
		}
	default:
		// Who is guilty is only known when it stands alone: Envoy's message may name
		// others by the way, or nobody at all.
		part := func(list []*envoy.Resource) {
			ty.groups = append(ty.groups, group{list, resp.previous, resp.removed, 0})
		}
		guilty, rest := named(list, r.failure)
		if len(guilty) == 0 {
			guilty, rest = nil, nil
			half := len(list) / 2
			part(list[:half:half])
			part(list[half:])
		}
		if len(rest) > 0 {
			part(rest)
		}
		for _, g := range guilty {
			part([]*envoy.Resource{g})
		}
	}
}

// refuse records that the proxy does not take this resource. It is not sent again
// until it changes; the proxy keeps what it had.
func (d *delta) refuse(t envoy.Type, res *envoy.Resource, previous []*envoy.Set, message string) {
	ty := &d.types[t]
	if ty.refused == nil {
		ty.refused = make(map[string]refusal)
	}
	ty.refused[res.Name] = refusal{res.Version, message}
	good := lookup(previous, t, res.Name)
	if good != nil && good.Version == res.Version {
		good = nil
	}
	d.s.refused(t, res, good, message)
}

// sendGroups sends the next part of rejected responses of which there is something left.
func (d *delta) sendGroups(t envoy.Type) *frame {
	for len(d.types[t].groups) > 0 {
		if f := d.sendGroup(t); f != nil {
			return f
		}
	}
	return nil
}

// sendGroup sends a part of a rejected response, in the newest version. What stood alone already comes last.
func (d *delta) sendGroup(t envoy.Type) *frame {
	ty := &d.types[t]
	i := max(slices.IndexFunc(ty.groups, func(g group) bool { return g.attempt == 0 }), 0)
	g := ty.groups[i]
	ty.groups = slices.Delete(ty.groups, i, i+1)
	var list []*envoy.Resource
	for _, old := range g.resources {
		if res := lookup(ty.have, t, old.Name); res != nil && d.wants(t, res.Name) {
			list = append(list, res)
		}
	}
	r := &response{typ: t, previous: g.previous, part: true, attempt: g.attempt}
	for _, name := range g.removed {
		if lookup(ty.have, t, name) == nil {
			r.removed = append(r.removed, name)
		}
	}
	if len(list) == 0 && len(r.removed) == 0 {
		return nil
	}
	if len(list) > 0 {
		r.lists = [][]*envoy.Resource{list}
	}
	switch t {
	case envoy.Cluster:
		d.forceEndpoints(list, ty.have)
	case envoy.Route:
		for _, table := range list {
			d.tables = add(d.tables, table.Name)
		}
	}
	return d.frame(t, r, segments(nil, list))
}
