package xds

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// unresolved is the version of an answer without content.
const unresolved = "-"

// replies are those to the questions of the app.
type replies map[string][]string // by name of the virtual host; "" has none

// answers finds out what is meant, and makes it a part of r.
func (d *delta) answers(r *response, want []*envoy.Set) replies {
	ty := &d.types[envoy.VirtualHost]
	slices.Sort(d.app.hosts)
	a := make(replies)
	for _, name := range slices.Compact(d.app.hosts) {
		res := d.s.publication.mesh.Resolve(d.s.proxy, envoy.VirtualHost, name)
		if res == nil {
			res = lookup(want, envoy.VirtualHost, name) // apps write what they like, also *.example.com
		}
		switch {
		case res == nil, lookup(want, envoy.VirtualHost, res.Name) == nil, ty.refused[res.Name].version == res.Version,
			ty.first && ty.known[res.Name] == res.Version: // connected again, and has it; a request may wait for a word all the same
			a[""] = append(a[""], name)
		default:
			ty.forced = add(ty.forced, res.Name)
			a[res.Name] = append(a[res.Name], name)
		}
		r.answers = append(r.answers, name)
	}
	d.app.hosts = nil
	return a
}

// segments is the content of a response with answers in it.
func (a replies) segments(lists [][]*envoy.Resource, want []*envoy.Set) (parts mem.BufferSlice) {
	sent := make(map[string]bool)
	for _, l := range lists {
		for _, res := range l {
			parts = append(parts, aliased(res, a[res.Name])...)
			delete(a, res.Name)
			sent[res.Name] = true
		}
	}
	// What is under suspicion was not sent: "look again" is an answer too.
	for _, name := range slices.Sorted(maps.Keys(a)) {
		for _, question := range a[name] {
			if sent[question] {
				continue
			}
			name := question
			if lookup(want, envoy.VirtualHost, question) != nil {
				// The proxy may have an older version of it. Under its name it would then report this answer, when it connects again, and
				// keep that version for ever.
				name = tableOf(question) + nothing + strings.TrimPrefix(question, tableOf(question)+"/")
			}
			entry := appendString(nil, resourceName, name)
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
