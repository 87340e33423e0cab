package xds

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// Rejection is a resource that a proxy refused, with the YAML that caused it.
type Rejection struct {
	Proxy    string     `json:"proxy"` // the first that refused: "pod.namespace"
	Proxies  int        `json:"proxies"`
	Type     string     `json:"type"` // "CDS", "EDS", ...
	Resource string     `json:"resource"`
	Version  string     `json:"version"`
	Causes   []mesh.Ref `json:"causes,omitempty"`
	Error    string     `json:"error"` // Envoy's words
	First    time.Time  `json:"first"`
	Last     time.Time  `json:"last"`
	LastGood string     `json:"lastGood,omitempty"` // version that proxies keep, where known
}

// suspectKey: what one release of Envoy refuses, another may accept.
type suspectKey struct {
	typ     envoy.Type
	name    string
	version string
	release string
}

type suspect struct {
	Rejection
	good    *envoy.Resource     // what proxies had before
	pods    map[string]struct{} // UIDs of those that refused it
	cleared bool                // some proxy took it: the fault is with the others' pods, not with the resource
}

// rejects remembers resources that a proxy refused. They are kept out of shared
// responses, because Envoy drops the innocent part of a response along with the
// guilty one, and are offered to each new proxy alone, after the last good version.
type rejects struct {
	count atomic.Int32 // suspects that are not cleared: almost always 0, and then nobody takes the lock

	mu       sync.Mutex
	suspects map[suspectKey]*suspect
}

// maxSuspects bounds the memory; the oldest is forgotten first.
const maxSuspects = 1000

func newRejects() *rejects { return &rejects{suspects: make(map[suspectKey]*suspect)} }

// refuse records a rejection. first is false when the same resource was refused before.
func (r *rejects) refuse(k suspectKey, uid, proxy, message string, causes []mesh.Ref, good *envoy.Resource, now time.Time) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.suspects[k]
	if s == nil {
		first = true
		r.makeRoom()
		s = &suspect{Rejection: Rejection{Proxy: proxy, Type: shortName(k.typ), Resource: k.name, Version: k.version, Causes: causes, First: now}, pods: make(map[string]struct{})}
		r.suspects[k] = s
		r.count.Add(1)
	}
	s.pods[uid] = struct{}{}
	s.Proxies, s.Error, s.Last = len(s.pods), message, now
	if s.good == nil && good != nil {
		s.good, s.LastGood = good, good.Version
	}
	return first
}

func (r *rejects) makeRoom() {
	if len(r.suspects) < maxSuspects {
		return
	}
	var oldest suspectKey
	var at time.Time
	for k, s := range r.suspects {
		if at.IsZero() || s.Last.Before(at) {
			oldest, at = k, s.Last
		}
	}
	if !r.suspects[oldest].cleared {
		r.count.Add(-1)
	}
	delete(r.suspects, oldest)
}

// accept clears a suspect that a proxy took.
func (r *rejects) accept(k suspectKey) {
	if r.count.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.suspects[k]; s != nil && !s.cleared {
		s.cleared = true
		r.count.Add(-1)
	}
}

// verdict is what is known of one resource that is about to be sent.
type verdict struct {
	good    *envoy.Resource // the last good version, nil when unknown
	refused bool            // by this very pod
}

// of returns the verdicts on suspects of one type that are in these lists.
func (r *rejects) of(t envoy.Type, release, uid string, lists [][]*envoy.Resource) map[*envoy.Resource]verdict {
	if r.count.Load() == 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var found map[*envoy.Resource]verdict
	for k, s := range r.suspects {
		if s.cleared || k.typ != t || k.release != release {
			continue
		}
		for _, list := range lists {
			res := find(list, k.name)
			if res == nil || res.Version != k.version {
				continue
			}
			if found == nil {
				found = make(map[*envoy.Resource]verdict)
			}
			_, refused := s.pods[uid]
			found[res] = verdict{good: s.good, refused: refused}
		}
	}
	return found
}

// list returns all rejections, the latest first.
func (r *rejects) list() []Rejection {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Rejection, 0, len(r.suspects))
	for _, s := range r.suspects {
		out = append(out, s.Rejection)
	}
	slices.SortFunc(out, func(a, b Rejection) int {
		if c := b.Last.Compare(a.Last); c != 0 {
			return c
		}
		return strings.Compare(a.Type+a.Resource, b.Type+b.Resource)
	})
	return out
}

// named returns the resources whose names occur in Envoy's message, as whole words.
// ("Error adding/updating cluster(s) outbound|80||x: ...")
func named(list []*envoy.Resource, message string) (in, out []*envoy.Resource) {
	for _, r := range list {
		if mentions(message, r.Name) {
			in = append(in, r)
		} else {
			out = append(out, r)
		}
	}
	return in, out
}

func mentions(message, name string) bool {
	for at := 0; name != ""; {
		i := strings.Index(message[at:], name)
		if i < 0 {
			return false
		}
		i += at
		end := i + len(name)
		if (i == 0 || !nameByte(message[i-1])) && (end == len(message) || !nameByte(message[end])) {
			return true
		}
		at = i + 1
	}
	return false
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._-|/", c) >= 0
}

// shortName is the name that Istio's users know a type by.
func shortName(t envoy.Type) string {
	return [...]string{envoy.Cluster: "CDS", envoy.Endpoints: "EDS", envoy.Listener: "LDS", envoy.Route: "RDS", envoy.VirtualHost: "VHDS", envoy.Secret: "SDS"}[t]
}
