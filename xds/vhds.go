package xds

import (
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// Virtual hosts differ from other types in four ways, all of them Envoy's:
//
//   - One response is applied as one change to each route table, and a table in which a domain occurs twice is refused. What goes and what
//     comes must therefore be in one message: a domain may move from one virtual host to another.
//   - Envoy asks for "everything" once a stream, whatever the number of its tables, and a table is not used before a message has named
//     something in it. A table without virtual hosts, and one that comes later, have to be completed unasked.
//   - A proxy on demand asks for what its app wants in the app's words, and a request waits for the answer. The answer says by an alias
//     what it answers. Silence, or a removal, would leave the request waiting.
//   - What a table's virtual hosts refer to must be there before them: clusters, and endpoints right behind the clusters.

// nothing completes a table: the removal of a name that no virtual host has.
const nothing = "/~"

// unresolved is the version of an answer without content.
const unresolved = "-"

// tableOf is the route configuration that a virtual host belongs to, as Envoy reads its name.
func tableOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

// hosts returns the virtual hosts of a table in one set. (Route configurations that take virtual hosts have no '/' in their names.)
func hosts(s *envoy.Set, table string) []*envoy.Resource {
	list := s.Resources[envoy.VirtualHost]
	byName := func(r *envoy.Resource, name string) int { return strings.Compare(r.Name, name) }
	from, _ := slices.BinarySearchFunc(list, table+"/", byName)
	to, _ := slices.BinarySearchFunc(list, table+"0", byName) // '0' follows '/'
	return list[from:to]
}

func hasHosts(sets []*envoy.Set, table string) bool {
	return slices.ContainsFunc(sets, func(s *envoy.Set) bool { return len(hosts(s, table)) > 0 })
}

// incomplete reports whether a table can be completed that has not been.
func (d *delta) incomplete() bool {
	for name := range d.tables {
		if lookup(d.s.wanted(envoy.Route), envoy.Route, name) != nil {
			return true
		}
	}
	return false
}

// complete puts something about each table into r that the proxy has and that nothing was said about.
func (d *delta) complete(r *response, want []*envoy.Set) {
	ty := &d.types[envoy.VirtualHost]
	empty := make(map[string]struct{})
	if ty.first {
		delete(ty.known, "")
		maps.DeleteFunc(ty.known, func(_, version string) bool { return version == unresolved })
		said := make(map[string]struct{})
		for name := range ty.known {
			said[tableOf(name)] = struct{}{}
		}
		for _, s := range want {
			for _, table := range s.Resources[envoy.Route] {
				if _, is := said[table.Name]; table.VHDS && !is && d.types[envoy.Route].wants(table.Name) && !hasHosts(want, table.Name) {
					empty[table.Name] = struct{}{}
				}
			}
		}
	}
	for name := range d.tables {
		table := lookup(want, envoy.Route, name)
		if table == nil {
			continue // when it comes into being
		}
		delete(d.tables, name)
		switch {
		case !table.VHDS:
		case !hasHosts(want, name):
			empty[name] = struct{}{}
		case !ty.first || len(ty.known) > 0:
			for _, s := range want {
				for _, host := range hosts(s, name) {
					ty.forced = add(ty.forced, host.Name)
				}
			}
		}
	}
	for name := range empty {
		r.removed = append(r.removed, name+nothing)
	}
}

// withdraw moves what is gone from tables that stay into r itself. What goes together with its table goes after it: the last requests
// still need it.
func (d *delta) withdraw(t envoy.Type, r *response, want []*envoy.Set) {
	if t != envoy.VirtualHost {
		return
	}
	ty := &d.types[t]
	for name := range ty.gone {
		if lookup(want, envoy.Route, tableOf(name)) != nil {
			delete(ty.gone, name)
			r.removed = append(r.removed, name)
		}
	}
}

// replies are those to the questions of the app.
type replies map[string][]string // by name of the virtual host; "" has none

// answers finds out what is meant, and makes it a part of r.
func (d *delta) answers(r *response, want []*envoy.Set) replies {
	ty := &d.types[envoy.VirtualHost]
	slices.Sort(d.questions)
	a := make(replies)
	for _, name := range slices.Compact(d.questions) {
		res := d.s.publication.mesh.Resolve(d.s.proxy, envoy.VirtualHost, name)
		switch {
		case res == nil, lookup(want, envoy.VirtualHost, res.Name) == nil, ty.refused[res.Name].version == res.Version:
			a[""] = append(a[""], name)
		case ty.first && ty.known[res.Name] == res.Version:
			continue // the proxy connected again, and has it
		default:
			ty.forced = add(ty.forced, res.Name)
			a[res.Name] = append(a[res.Name], name)
		}
		r.answers = append(r.answers, name)
	}
	d.questions = nil
	return a
}

// segments is the content of a response with answers in it.
func (a replies) segments(lists [][]*envoy.Resource) (parts mem.BufferSlice) {
	for _, l := range lists {
		for _, res := range l {
			parts = append(parts, aliased(res, a[res.Name])...)
			delete(a, res.Name)
		}
	}
	// What is under suspicion was not sent: "look again" is an answer too.
	for _, name := range slices.Sorted(maps.Keys(a)) {
		for _, question := range a[name] {
			entry := appendString(nil, resourceName, question)
			entry = appendString(entry, resourceVersion, unresolved)
			entry = appendString(entry, resourceAliases, question)
			parts = append(parts, mem.SliceBuffer(protowire.AppendBytes(protowire.AppendTag(nil, responseResources, protowire.BytesType), entry)))
		}
	}
	return parts
}

// aliased is a resource under further names. Its body is not copied.
func aliased(res *envoy.Resource, names []string) mem.BufferSlice {
	var aliases []byte
	for _, name := range names {
		if name != res.Name {
			aliases = appendString(aliases, resourceAliases, name)
		}
	}
	_, _, tag := protowire.ConsumeTag(res.Segment)
	_, length := protowire.ConsumeVarint(res.Segment[max(tag, 0):])
	if len(aliases) == 0 || tag < 0 || length < 0 {
		return mem.BufferSlice{mem.SliceBuffer(res.Segment)}
	}
	entry := res.Segment[tag+length:]
	head := protowire.AppendVarint(protowire.AppendTag(nil, responseResources, protowire.BytesType), uint64(len(entry)+len(aliases)))
	return mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(entry), mem.SliceBuffer(aliases)}
}

// maxInFlight bounds the responses of a type that an app's questions may put on the way before the first is confirmed. Envoy confirms no
// clusters while one of them warms up, and another host's request should not wait for that.
const maxInFlight = 8

// urgent reports whether someone waits for a type now.
func (d *delta) urgent(t envoy.Type) bool {
	ty := &d.types[t]
	if d.s.appetite == nil || len(ty.inflight) >= maxInFlight || len(ty.groups) > 0 {
		return false
	}
	switch t {
	case envoy.Cluster, envoy.VirtualHost:
		return len(d.questions) > 0 || t == envoy.Cluster && len(ty.forced)+len(ty.absent) > 0
	case envoy.Endpoints:
		return len(d.questions) > 0 || len(d.clusters) > 0 || len(ty.expected) > 0
	}
	return false
}

// patience is how long a proxy that connects again may take to say what it has asked for. Envoy says it at once.
const patience = 15 * time.Second

// recall looks at what a proxy has from an earlier stream: it must have been asked for, by this replica of the workload or another one.
func (d *delta) recall(t envoy.Type, r *request) {
	if d.s.appetite == nil {
		return
	}
	switch t {
	case envoy.Cluster:
		d.returning = len(r.initial) > 0 && !d.types[envoy.VirtualHost].asked
	case envoy.VirtualHost:
		for name, version := range r.initial {
			if version != unresolved && len(name) <= maxName && !strings.HasSuffix(name, everything) {
				d.s.had = append(d.s.had, strings.Clone(name))
			}
		}
	}
}

// returned ends the time in which a proxy that connected again tells what it has asked for. Its clusters that
// no virtual host needs were asked for one by one, by this replica or by another: they stay, if the mesh still has them.
func (d *delta) returned(held bool) {
	ty := &d.types[envoy.VirtualHost]
	if !d.returning || held || !(ty.asked && !ty.first) && time.Since(d.s.opened) < patience {
		return
	}
	if !d.recalled {
		d.recalled = true
		for name := range d.types[envoy.Cluster].gone {
			if d.s.publication.mesh.Means(d.s.proxy, envoy.Cluster, name) == envoy.Known {
				d.s.hear(envoy.Cluster, name)
			}
		}
		if d.s.curious() {
			return
		}
	}
	d.returning = false
	for t := range d.types {
		if !d.types[t].first {
			d.types[t].known = nil
		}
	}
}

// learned is called when the Demand holds what was heard, as far as it may. Clusters that were asked for are there now, or never.
func (d *delta) learned() {
	ty := &d.types[envoy.Cluster]
	sets := d.s.wanted(envoy.Cluster)
	for _, name := range ty.wanting {
		switch res := lookup(sets, envoy.Cluster, name); {
		case res == nil && ty.known[name] == "":
			ty.absent = add(ty.absent, name)
		case res != nil && !ty.first:
			ty.forced = add(ty.forced, res.Name)
		}
	}
	ty.wanting = nil
}
