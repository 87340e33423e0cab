package xds

import (
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/meshtest"
)

// link is one stream, with what is on its way in both directions. Nothing moves by itself.
type link struct {
	server  *Server
	sidecar *sidecar
	session *session // nil until the first request arrives
	busy    bool     // flush is under way
	up      []*discovery.DeltaDiscoveryRequest
	down    []*discovery.DeltaDiscoveryResponse
}

// wire is the session's end of it.
type wire struct {
	grpc.ServerStream
	link *link
}

func (w wire) SendMsg(m any) error {
	f := m.(*frame)
	r := new(discovery.DeltaDiscoveryResponse)
	if err := proto.Unmarshal(f.parts.Materialize(), r); err != nil {
		w.link.sidecar.t.Fatal(err)
	}
	w.link.down = append(w.link.down, r)
	return nil
}

// serve is Server.serve up to the point where it waits.
func (l *link) serve() {
	e, s := l.sidecar, l.server
	log := login{namespace: e.namespace, pod: e.pod, watchdog: newWatchdog()}
	ses := &session{server: s, stream: wire{link: l}, login: log, node: &node{version: "1.40.0"}, delta: true, leave: make(chan struct{}), kicked: make(chan struct{}, 1), opened: time.Now()}
	ses.publication = s.current.Load()
	if err := log.identify(ses.publication.mesh, ses.node, &ses.proxy); err != nil {
		e.fatalf("%v", err)
	}
	if e.onDemand {
		ses.appetite = s.demands.enter(ses.proxy.Namespace + "/" + ses.proxy.ServiceAccount)
		p := s.demands.current(ses.appetite)
		ses.proxy.Demand, ses.grown = p.Demand, p.grown
	}
	ses.sets = ses.publication.mesh.Sets(ses.proxy)
	ses.arrange()
	ses.protocol = newDelta(ses)
	l.session, l.busy = ses, true
}

func (l *link) close() {
	if l.session != nil && l.session.appetite != nil {
		l.server.demands.leave(l.session.appetite)
	}
}

// hear lets the oldest request arrive.
func (l *link) hear() bool {
	if len(l.up) == 0 {
		return false
	}
	text, err := proto.Marshal(l.up[0])
	if err != nil {
		l.sidecar.t.Fatal(err)
	}
	l.up = l.up[1:]
	if l.session == nil {
		l.serve()
	}
	if err := l.session.hearken(&request{delta: true, unread: string(text)}); err != nil {
		l.sidecar.fatalf("the stream ended: %v", err)
	}
	return true
}

// turn lets the session do its next step, if something has woken it: see session.run.
func (l *link) turn() bool {
	s := l.session
	if s == nil {
		return false
	}
	if !l.busy {
		select {
		case <-s.kicked:
		case <-s.publication.next:
			if err := s.refresh(); err != nil {
				l.sidecar.fatalf("%v", err)
			}
		case <-s.grown:
			s.adopt()
		default:
			return false
		}
	}
	var err error
	if l.busy, err = s.step(); err != nil {
		l.sidecar.fatalf("%v", err)
	}
	d := s.protocol.(*delta)
	for t := range d.types {
		limit := 1
		if s.appetite != nil && (envoy.Type(t) <= envoy.Endpoints || envoy.Type(t) == envoy.VirtualHost) {
			limit = maxInFlight
		}
		if n := len(d.types[t].inflight); n > limit {
			l.sidecar.fatalf("%d responses of %s are on their way", n, shortName(envoy.Type(t)))
		}
	}
	return true
}

// read lets the oldest response arrive.
func (l *link) read() bool {
	if len(l.down) == 0 {
		return false
	}
	r := l.down[0]
	l.down = l.down[1:]
	l.sidecar.take(r)
	return true
}

// moment is a World as the server sees it.
type moment struct {
	*envoy.World
	snapshot *mesh.Snapshot
}

func (m moment) Workload(namespace, name string) *mesh.Workload {
	return m.snapshot.Workload(namespace, name)
}
func (m moment) OnDemand(w *mesh.Workload) bool { return !strings.HasPrefix(w.Name, "eager") }

const sidecarPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {%s}, annotations: {sidecar.istio.io/status: '{}'}}
spec: {serviceAccountName: client, nodeName: north, containers: [{name: app, image: app}]}
status: {podIP: %s, podIPs: [{ip: %s}], phase: Running}
`

const always = `apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec: {clusterIP: 10.96.1.9, selector: {app: reviews}, ports: [{name: http, port: 9080}]}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: default}
spec: {clusterIP: 10.96.1.8, selector: {app: ratings}, ports: [{name: http, port: 80}, {name: tcp-more, port: 9100}]}
`

// moments are what a mesh was, is and will be.
func moments(t testing.TB, seed uint64, n int) (list []moment) {
	store := mesh.NewStore(mesh.Options{})
	take := func(document string) {
		for _, o := range meshtest.Objects(t, document) {
			_ = store.Apply(mesh.Object{Object: o})
		}
	}
	take(always)
	chance := rand.New(rand.NewPCG(seed, 5))
	var world *envoy.World
	for _, e := range meshtest.History(t, seed, n, meshtest.Objects(t, always)) {
		var apply []mesh.Object
		for _, o := range e.Apply {
			apply = append(apply, mesh.Object{Object: o})
		}
		_ = store.Update(apply, e.Remove) // what it refuses has no effect
		for i, c := range newCast(t) {
			if world == nil || chance.IntN(20) == 0 {
				labels := []string{"app: client", "app: sleep", "app: reviews, version: v1", "tier: a"}[chance.IntN(4)]
				address := fmt.Sprintf("10.244.99.%d", i+1)
				take(fmt.Sprintf(sidecarPod, c.pod, c.namespace, labels, address, address))
			}
		}
		snapshot := store.Snapshot()
		world = envoy.NewWorld(snapshot, world)
		list = append(list, moment{world, snapshot})
	}
	return list
}

func newCast(t testing.TB) []*sidecar {
	return []*sidecar{newSidecar(t, "default", "one", true), newSidecar(t, "default", "two", true), newSidecar(t, "other", "three", true), newSidecar(t, "default", "eager", false)}
}

// history is what happens between two control planes and some sidecars, decided by bytes.
type history struct {
	t       testing.TB
	bytes   []byte
	moments []moment
	servers [2]*Server
	at      [2]int // which moment they know
	cast    []*sidecar
	crawled int
}

// pick is one of n; the first when there are no more bytes.
func (h *history) pick(n int) int {
	if len(h.bytes) == 0 {
		return 0
	}
	b := h.bytes[0]
	h.bytes = h.bytes[1:]
	return int(b) % n
}

func play(t testing.TB, list []moment, bytes []byte) {
	h := &history{t: t, bytes: bytes, moments: list, cast: newCast(t)}
	picky, salt := h.pick(3), h.pick(256)
	for _, e := range h.cast {
		e.refuses = func(name, version string) bool {
			if name == "" {
				return picky == 2
			}
			f := fnv.New32a()
			fmt.Fprint(f, name, version, salt)
			return picky == 2 && f.Sum32()%8 == 0
		}
	}
	for i := range h.servers {
		h.start(i)
	}
	for len(h.bytes) > 0 {
		h.happen()
	}
	for i := range h.servers {
		h.publish(i, len(list)-1)
	}
	h.settle()
	h.verify()
	// Each connects to the other server, and then to one that remembers nothing.
	for _, change := range []func(i int){func(int) {}, h.start} {
		for i := range h.servers {
			change(i)
		}
		for _, e := range h.cast {
			to := h.servers[0]
			if e.link != nil && e.link.server == to {
				to = h.servers[1]
			}
			e.connect(to)
		}
		h.settle()
		h.verify()
	}
	if picky == 2 || h.crawled > 0 {
		return
	}
	for _, e := range h.cast {
		h.start(0)
		e.connect(h.servers[0])
		h.settle()
		last := list[len(list)-1]
		for _, name := range e.told {
			// An empty cluster that nobody has, and a wildcard, that another replica has asked for go, and come again with that replica.
			if last.Means(e.proxy(last), envoy.Cluster, name) != envoy.Stranger && !strings.Contains(name, "/*") {
				e.fatalf("it connected again to a server that remembers nothing, and was sent %q", e.told)
			}
		}
	}
}

// start makes a control plane that remembers nothing.
func (h *history) start(i int) {
	if old := h.servers[i]; old != nil {
		for _, e := range h.cast {
			if e.link != nil && e.link.server == old {
				e.disconnect()
			}
		}
	}
	h.servers[i] = NewServer(Config{Log: slog.New(slog.DiscardHandler)})
	h.publish(i, h.at[i])
}

func (h *history) publish(i, moment int) {
	h.at[i] = moment
	h.servers[i].Publish(h.moments[moment], time.Now())
}

var appNames = []string{"80/ratings", "80/ratings.default", "80/ratings.default.svc.cluster.local:80", "9080/reviews", "9080/reviews.default.svc", "9080/ratings", "80/reviews",
	"80/10.96.1.8", "80/shop.example.com", "80/a.example.com", "80/b.example.com", "9080/late.example.com", "80/sleep.other", "9080/sleep", "80/nobody", "9080/nobody.default:9080", "80/a b", "80/",
	"81/reviews", "80/*.example.com", "80/" + strings.Repeat("x", maxName), "80/[fd00::7]", "9080/reviews.istio-system", "80/ratings.other"}

var appClusters = []string{"outbound|9100||ratings.default.svc.cluster.local", "outbound|80||ratings.default.svc.cluster.local", "outbound|9080||reviews.default.svc.cluster.local",
	"outbound|9080|v1|reviews.default.svc.cluster.local", "outbound|9080|v2|reviews.default.svc.cluster.local", "outbound|9100||reviews.default.svc.cluster.local", "outbound|80||shop.example.com", "x", "outbound|1||nobody"}

// happen is one thing.
func (h *history) happen() {
	e := h.cast[h.pick(len(h.cast))]
	switch h.pick(20) {
	case 0, 1:
		if i := h.pick(2); h.at[i] < len(h.moments)-1 {
			h.publish(i, h.at[i]+1)
		}
	case 2, 3:
		for range 1 + h.pick(3) {
			e.ask(envoy.VirtualHost, appNames[h.pick(len(appNames))])
		}
	case 4:
		e.ask(envoy.Cluster, appClusters[h.pick(len(appClusters))])
	case 5:
		e.connect(h.servers[h.pick(2)])
	case 6:
		switch n := h.pick(16); {
		case n < 2:
			h.start(n)
		case n < 4:
			for _, d := range h.servers[n-2].Demands() {
				h.servers[3-n].Learn(d)
			}
		case n == 4:
			h.crawled++
			for i := range maxStrangers/8 + 1 {
				var names []string
				for j := range 8 {
					names = append(names, fmt.Sprintf("80/crawl-%d-%d", i, j))
				}
				e.ask(envoy.VirtualHost, names...)
			}
		}
	case 7:
		h.prime(e)
	default:
		if e.link == nil {
			e.connect(h.servers[h.pick(2)])
			return
		}
		switch move := h.pick(4); move {
		case 0:
			for range 1 + h.pick(3) {
				e.link.hear()
			}
		case 1:
			for range 1 + h.pick(4) {
				e.link.turn()
			}
		case 2:
			for range 1 + h.pick(3) {
				e.link.read()
			}
		default:
			e.talk()
		}
	}
}

// talk goes on until both sides have nothing more to say.
func (e *sidecar) talk() (more bool) {
	for n := 0; e.link.hear() || e.link.turn() || e.link.read(); n++ {
		if more = true; n > 5000 {
			e.fatalf("they do not come to an end")
		}
	}
	return more
}

// prime lets a sidecar's first clusters begin.
func (h *history) prime(e *sidecar) {
	if !e.primed && len(e.has[envoy.Cluster]) > 0 {
		e.primed = true
		e.follow()
	}
}

// settle lets everything happen that happens by itself.
func (h *history) settle() {
	for range 3 {
		for more := true; more; {
			more = false
			for _, e := range h.cast {
				if e.link == nil {
					e.connect(h.servers[0])
				}
				h.prime(e)
				more = e.talk() || more
			}
		}
		// Time passes.
		for _, e := range h.cast {
			if s := e.link.session; s != nil && !s.protocol.alarm().IsZero() {
				s.opened = s.opened.Add(-patience)
				e.link.busy = true
			}
		}
	}
}

// verify compares what the sidecars have with what they should have.
func (h *history) verify() {
	h.t.Helper()
	for _, e := range h.cast {
		s := e.link.session
		if f := s.protocol.next(); f != nil {
			r := new(discovery.DeltaDiscoveryResponse)
			_ = proto.Unmarshal(f.parts.Materialize(), r)
			e.fatalf("nobody woke the stream that had something to say: %s", describe(r))
		}
		if !s.protocol.alarm().IsZero() {
			e.fatalf("the stream's alarm rings for ever")
		}
		if !s.protocol.waiting().IsZero() {
			e.fatalf("the server waits for an answer; clusters that wait for endpoints: %v", e.cold)
		}
		last := h.moments[len(h.moments)-1]
		p := e.proxy(last)
		if text := e.lacks(last.Sets(p)); text != "" {
			e.fatalf("%s\nasked %v", text, p.Demand)
		}
	}
}

// proxy is a sidecar as its server knows it.
func (e *sidecar) proxy(m moment) envoy.Proxy {
	p := envoy.Proxy{Kind: envoy.Sidecar, Namespace: e.namespace, Pod: e.pod, ServiceAccount: "client", Workload: m.Workload(e.namespace, e.pod)}
	if e.onDemand {
		p.Demand = &envoy.Demand{Workload: e.namespace + "/client"}
		for _, d := range e.link.server.Demands() {
			if d.Workload == p.Demand.Workload {
				p.Demand = d
			}
		}
	}
	return p.Identified()
}

func script(seed uint64, n int) []byte {
	chance := rand.New(rand.NewPCG(seed, 11))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(chance.Uint32())
	}
	return out
}

// Whatever a mesh goes through, and its apps ask for, and breaks between sidecars and control planes: when all is quiet, each sidecar has what it should have, each question has
// its answer, and no request was ever sent to a cluster that was not there.
func TestSidecarsEndUpWithWhatTheirWorkloadAskedFor(t *testing.T) {
	for seed := range meshtest.Seeds(t, 20) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			play(t, moments(t, seed, 20), script(seed, 1500))
		})
	}
}

// FuzzHistory plays histories of a few meshes.
func FuzzHistory(f *testing.F) {
	for seed := range 4 {
		f.Add(script(uint64(seed), 300))
	}
	var list [][]moment
	for seed := range 4 {
		list = append(list, moments(f, uint64(seed), 8))
	}
	f.Fuzz(func(t *testing.T, bytes []byte) {
		if len(bytes) > 0 {
			play(t, list[int(bytes[0])%len(list)], bytes[1:min(len(bytes), 4000)])
		}
	})
}
