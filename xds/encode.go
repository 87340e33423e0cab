package xds

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// change is what leads from one version of a scope to another, for one type.
// It is computed once and shared by all streams that make the same step.
type change struct {
	once    sync.Once
	updated []*envoy.Resource // new or different, sorted by name
	removed []string
	parts   mem.BufferSlice // the Segments of updated in a row
	runs    []*run          // that parts consist of
	used    atomic.Uint64
	done    atomic.Bool
}

// A run is the Segments of a few resources copied into one buffer, so that a stream does not write a thousand small ones. Scopes see mostly
// the same: what one writes first, others share.
type run struct {
	list  []*envoy.Resource
	body  []byte
	users int // changes
}

type changeKey struct {
	from, to *envoy.Set // from is nil when the proxy has nothing yet
	typ      envoy.Type
	// with: endpoints only. The step also contains the endpoints of clusters that
	// changed in it, whether they changed themselves or not.
	with bool
}

// changes caches what streams need to go from one Set to the next. The key
// holds pointers: Sets are immutable, and unchanged ones are the same object.
type changes struct {
	mu         sync.Mutex
	entries    map[changeKey]*change
	generation atomic.Uint64

	runsMu sync.Mutex
	runs   map[*envoy.Resource][]*run // by the first of their resources
	kept   int                        // bytes in runs
}

// keepRuns bounds the memory for runs. Beyond it a response is put together
// from the segments, which takes longer but no memory.
const keepRuns = 128 << 20

// runLength is how many resources make a run, on average. The name of a resource says whether one ends with it, so that a resource which only
// some scopes have makes a difference to one run, and not to all that follow.
const runLength = 16

func endsRun(r *envoy.Resource) bool { return xxhash.Sum64String(r.Name)%runLength == 0 }

// keepGenerations is how many publications an unused entry survives.
const keepGenerations = 3

func newChanges() *changes {
	return &changes{entries: make(map[changeKey]*change), runs: make(map[*envoy.Resource][]*run)}
}

// get returns the step from one Set to another.
func (c *changes) get(k changeKey) *change {
	c.mu.Lock()
	e := c.entries[k]
	if e == nil {
		e = new(change)
		c.entries[k] = e
	}
	c.mu.Unlock()
	e.used.Store(c.generation.Load())
	// Others who want the same step wait here, not at c.mu.
	e.once.Do(func() {
		defer e.done.Store(true)
		e.compute(k)
		c.encode(e)
	})
	return e
}

// encode fills e.parts.
func (c *changes) encode(e *change) {
	c.runsMu.Lock()
	defer c.runsMu.Unlock()
	for rest := e.updated; len(rest) > 0; {
		n := 1 + slices.IndexFunc(rest, endsRun)
		if n == 0 {
			n = len(rest)
		}
		if r := c.run(rest[:n]); r != nil {
			r.users++
			e.runs = append(e.runs, r)
			e.parts = append(e.parts, mem.SliceBuffer(r.body))
		} else {
			e.parts = segments(e.parts, rest[:n])
		}
		rest = rest[n:]
	}
}

// run finds or makes the run of these resources; nil for a single one, whose Segment needs no copy, and when there is no room. The caller holds runsMu.
func (c *changes) run(list []*envoy.Resource) *run {
	if len(list) == 1 {
		return nil
	}
	for _, r := range c.runs[list[0]] {
		if slices.Equal(r.list, list) {
			return r
		}
	}
	size := 0
	for _, r := range list {
		size += len(r.Segment)
	}
	if c.kept+size > keepRuns {
		return nil
	}
	c.kept += size
	r := &run{list: slices.Clone(list), body: make([]byte, 0, size)}
	for _, resource := range list {
		r.body = append(r.body, resource.Segment...)
	}
	c.runs[list[0]] = append(c.runs[list[0]], r)
	return r
}

// drop gives back what e held. The buffers live on in responses that are still being written.
func (c *changes) drop(e *change) {
	c.runsMu.Lock()
	defer c.runsMu.Unlock()
	for _, r := range e.runs {
		if r.users--; r.users > 0 {
			continue
		}
		c.kept -= len(r.body)
		first := r.list[0]
		if c.runs[first] = slices.DeleteFunc(c.runs[first], func(o *run) bool { return o == r }); len(c.runs[first]) == 0 {
			delete(c.runs, first)
		}
	}
}

// sweep is called at each publication and forgets steps that nobody takes any more.
func (c *changes) sweep() {
	now := c.generation.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, e := range c.entries {
		if e.done.Load() && e.used.Load()+keepGenerations < now {
			c.drop(e)
			delete(c.entries, k)
		}
	}
}

func (e *change) compute(k changeKey) {
	e.updated, e.removed = difference(k.from, k.to, k.typ)
	if !k.with {
		return
	}
	clusters, _ := difference(k.from, k.to, envoy.Cluster)
	e.updated = mergeByName(e.updated, companions(clusters, k.to))
}

// difference compares two Sets; nil stands for an empty one.
func difference(from, to *envoy.Set, t envoy.Type) (updated []*envoy.Resource, removed []string) {
	var a, b []*envoy.Resource
	if from != nil {
		a = from.Resources[t]
	}
	if to != nil {
		b = to.Resources[t]
	}
	if len(a) == 0 {
		return b, nil
	}
	if len(a) == len(b) && &a[0] == &b[0] {
		return nil, nil
	}
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].Name < b[0].Name:
			removed = append(removed, a[0].Name)
			a = a[1:]
		case len(a) == 0 || b[0].Name < a[0].Name:
			updated = append(updated, b[0])
			b = b[1:]
		default:
			if a[0] != b[0] && a[0].Version != b[0].Version {
				updated = append(updated, b[0])
			}
			a, b = a[1:], b[1:]
		}
	}
	return updated, removed
}

// companions returns the endpoints of these clusters in set. A ClusterLoadAssignment
// has the name of its cluster, as in Istio.
//
// Envoy keeps a changed cluster in "warming" until it sees endpoints for it, and does
// not ask for those it had before: they must follow on their own, or the
// cluster stays old for the whole initial_fetch_timeout of 15 s.
func companions(clusters []*envoy.Resource, set *envoy.Set) []*envoy.Resource {
	var list []*envoy.Resource
	for _, c := range clusters {
		if r := find(set.Resources[envoy.Endpoints], c.Name); r != nil {
			list = append(list, r)
		}
	}
	return list
}

// mergeByName joins two sorted lists; of equal names one stays.
func mergeByName(a, b []*envoy.Resource) []*envoy.Resource {
	if len(b) == 0 {
		return a
	}
	out := make([]*envoy.Resource, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		switch {
		case a[0].Name < b[0].Name:
			out, a = append(out, a[0]), a[1:]
		case b[0].Name < a[0].Name:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// find is a binary search by name; nil when there is none.
func find(list []*envoy.Resource, name string) *envoy.Resource {
	lo, hi := 0, len(list)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if list[mid].Name < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(list) && list[lo].Name == name {
		return list[lo]
	}
	return nil
}

// typeHeads are the type_url fields of responses, encoded once.
var typeHeads = func() (heads [envoy.NumTypes][]byte) {
	for t := range heads {
		heads[t] = appendString(nil, responseType, envoy.Type(t).TypeURL())
	}
	return heads
}()

// anyHeads are the beginnings of Any messages: the type_url field.
var anyHeads = func() (heads [envoy.NumTypes][]byte) {
	for t := range heads {
		heads[t] = appendString(nil, 1, envoy.Type(t).TypeURL())
	}
	return heads
}()

// segments appends resources one by one, without copying them.
func segments(parts mem.BufferSlice, list []*envoy.Resource) mem.BufferSlice {
	for _, r := range list {
		parts = append(parts, mem.SliceBuffer(r.Segment))
	}
	return parts
}

// anySegments appends resources as `resources` entries of a DiscoveryResponse:
// bare Any messages around the shared bodies.
func anySegments(parts mem.BufferSlice, t envoy.Type, list []*envoy.Resource) mem.BufferSlice {
	// All heads go into one allocation: tag and length of the entry, type_url, tag and length of the value.
	heads := make([]byte, 0, len(list)*(len(anyHeads[t])+14))
	for _, r := range list {
		begin := len(heads)
		size := len(anyHeads[t]) + protowire.SizeTag(2) + protowire.SizeBytes(len(r.Body))
		heads = protowire.AppendVarint(protowire.AppendTag(heads, responseResources, protowire.BytesType), uint64(size))
		heads = append(heads, anyHeads[t]...)
		heads = protowire.AppendVarint(protowire.AppendTag(heads, 2, protowire.BytesType), uint64(len(r.Body)))
		parts = append(parts, mem.SliceBuffer(heads[begin:len(heads):len(heads)]), mem.SliceBuffer(r.Body))
	}
	return parts
}
