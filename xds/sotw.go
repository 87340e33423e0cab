package xds

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc/mem"

	"github.com/weft-mesh/weft/envoy"
)

// world speaks the state-of-the-world protocol: each response holds all resources
// of its type that the proxy wants. weft's own sidecars use delta; this is for others.
type world struct {
	s     *session
	types [envoy.NumTypes]worldType
}

type worldType struct {
	asked    bool
	wildcard bool
	names    []string // sorted
	again    bool     // to be sent even when nothing changed
	version  string   // of the last response
	have     []*envoy.Set
	shown    []*envoy.Resource // content of the last response
	keeping  bool              // shown contains resources that are gone but may still be referred to
	inflight *response
	refused  map[string]refusal

	sent, acked string
}

func newWorld(s *session) protocol { return &world{s: s} }

func (w *world) request(t envoy.Type, r *request) error {
	w.ask(t, r)
	return nil
}

func (w *world) ask(t envoy.Type, r *request) {
	ty := &w.types[t]
	names := make([]string, 0, len(r.subscribe))
	for _, n := range r.subscribe {
		names = append(names, strings.Clone(n))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case !ty.asked:
		ty.asked = true
		ty.wildcard = wildcardType(t) && len(names) == 0
		ty.names = names
		ty.again = true
		warming := t == envoy.Endpoints && !w.types[envoy.Cluster].asked // see delta.request
		if !warming && r.version != "" && r.version == versionOf(w.pick(t)) {
			// It connected again, and has just what it should have.
			ty.again, ty.version, ty.have, ty.shown = false, strings.Clone(r.version), w.s.wanted(t), w.pick(t)
			w.s.server.metrics.unchanged(t, len(ty.shown))
		}
		return
	case r.nonce != "" && r.nonce != ty.sent:
		return // an answer to an older response; one to the last is on its way
	case ty.inflight != nil && r.nonce == ty.inflight.nonce:
		w.answer(t, r)
	}
	if !slices.Equal(names, ty.names) {
		ty.names = names
		ty.wildcard = ty.wildcard && len(names) == 0
		ty.again = true
	}
}

func (w *world) answer(t envoy.Type, r *request) {
	ty := &w.types[t]
	resp := ty.inflight
	ty.inflight = nil
	if !r.failed {
		ty.acked, ty.refused = resp.nonce, nil
		return
	}
	w.s.server.metrics.rejected(t)
	guilty, _ := named(ty.shown, r.failure)
	if len(guilty) == 0 {
		guilty = ty.shown
	}
	ty.refused = make(map[string]refusal)
	for _, res := range guilty {
		ty.refused[res.Name] = refusal{res.Version, r.failure}
		if len(guilty) == 1 {
			w.s.refused(t, res, lookup(resp.previous, t, res.Name), r.failure)
		}
	}
	if len(guilty) != 1 {
		w.s.server.log.Warn("proxy rejected configuration and keeps what it had", "proxy", w.s.name(), "type", shortName(t), "resources", len(guilty), "error", r.failure)
	}
}

// pick returns what the proxy wants of a type, sorted by name.
func (w *world) pick(t envoy.Type) []*envoy.Resource {
	ty := &w.types[t]
	var list []*envoy.Resource
	sets := w.s.wanted(t)
	if ty.wildcard {
		for _, s := range sets {
			list = append(list, s.Resources[t]...)
		}
	}
	for _, name := range ty.names {
		if r := lookup(sets, t, name); r != nil {
			list = append(list, r)
		}
	}
	sortByName(list)
	return slices.CompactFunc(list, func(a, b *envoy.Resource) bool { return a.Name == b.Name })
}

// next sends changes in the order of delta. What is gone stays in a response of
// clusters or listeners until everything that could refer to it was sent.
func (w *world) next() *frame {
	held := false
	for t := range envoy.NumTypes {
		ty := &w.types[t]
		if !ty.asked || !ty.again && slices.Equal(ty.have, w.s.wanted(t)) {
			continue
		}
		if ty.inflight != nil {
			held = true
			continue
		}
		if held && (t == envoy.Listener || t == envoy.Route) {
			continue
		}
		if f := w.send(t, true); f != nil {
			return f
		}
	}
	if held || !w.waiting().IsZero() {
		return nil
	}
	for _, t := range [...]envoy.Type{envoy.Listener, envoy.Cluster} {
		if w.types[t].keeping {
			if f := w.send(t, false); f != nil {
				return f
			}
		}
	}
	return nil
}

func (w *world) learned() {}

func (w *world) pending() bool { return true }

func (w *world) alarm() time.Time { return time.Time{} }

func (w *world) waiting() (since time.Time) {
	for t := range w.types {
		if r := w.types[t].inflight; r != nil && (since.IsZero() || r.at.Before(since)) {
			since = r.at
		}
	}
	return since
}

// send makes a response; nil when the proxy has just that already.
func (w *world) send(t envoy.Type, keep bool) *frame {
	ty := &w.types[t]
	list := w.pick(t)
	ty.keeping = false
	if keep && ty.wildcard {
		if all := mergeByName(list, ty.shown); len(all) > len(list) {
			list, ty.keeping = all, true
		}
	}
	r := &response{typ: t, previous: ty.have, lists: [][]*envoy.Resource{list}, at: time.Now()}
	version := versionOf(list)
	again := ty.again
	ty.have, ty.again = w.s.wanted(t), false
	if version == ty.version && !again {
		return nil
	}
	if t == envoy.Cluster && ty.version != "" {
		// A changed cluster waits for endpoints that Envoy does not ask for again.
		w.types[envoy.Endpoints].again = w.types[envoy.Endpoints].asked
	}
	ty.version, ty.shown = version, list
	r.nonce = w.s.nextNonce()
	ty.sent, ty.inflight = r.nonce, r
	head := appendString(nil, responseVersion, version)
	head = appendString(head, responseNonce, r.nonce)
	head = w.s.greeting(head, false)
	parts := mem.BufferSlice{mem.SliceBuffer(head), mem.SliceBuffer(typeHeads[t])}
	return &frame{parts: anySegments(parts, t, list), info: r}
}

// versionOf is the same on each replica for the same content.
func versionOf(list []*envoy.Resource) string {
	h := xxhash.New()
	for _, r := range list {
		h.WriteString(r.Name)
		h.WriteString("\x00" + r.Version + "\x00")
	}
	return strconv.FormatUint(h.Sum64(), 16)
}

func (w *world) status(t envoy.Type) typeStatus {
	ty := &w.types[t]
	return typeStatus{Asked: ty.asked, Sent: ty.sent, Acked: ty.acked, InFlight: ty.inflight != nil, Names: ty.names, Refused: ty.refused}
}
