package xds

import (
	"maps"
	"slices"
	"strings"

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
				if _, is := said[table.Name]; table.VHDS && !is && d.wants(envoy.Route, table.Name) && !hasHosts(want, table.Name) {
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
