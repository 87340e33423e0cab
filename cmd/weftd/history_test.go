package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity/identitytest"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/manifest"
	"github.com/weft-mesh/weft/mesh/meshtest"
)

// Whatever happens to the files that weftd follows, and however its streams break meanwhile: when all is quiet, each proxy holds
// what the files say, and nothing else. From the file's write to the proxy's memory nothing is left out but Envoy.
func TestProxiesEndUpWithWhatTheFilesSay(t *testing.T) {
	kit.Root(t)
	t.Setenv("PILOT_DEBOUNCE_AFTER", "10ms")
	for seed := range meshtest.Seeds(t, 3) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := startWatched(t, seed)
			for i, e := range meshtest.History(t, seed, 60, nil) {
				w.happen(e)
				if e.Rand().IntN(6) == 0 {
					w.settle(i)
				}
			}
			w.settle(60)
		})
	}
}

// watched is a weftd with clients whose pods come and go.
type watched struct {
	t       *testing.T
	dir     string
	clients []*pretender
	present map[string]bool // pods of clients
}

const clientPod = `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {%s}, annotations: {sidecar.istio.io/status: '{"templates":["%s"]}', weft.dev/discovery: %s}}
spec: {serviceAccountName: client, nodeName: north, containers: [{name: app, image: app}]}
status: {podIP: %s, podIPs: [{ip: %s}], phase: Running}
`

func startWatched(t *testing.T, seed uint64) *watched {
	w := &watched{t: t, dir: t.TempDir(), present: map[string]bool{}}
	issuer := identitytest.NewIssuer(t, issuerName, "k1")
	args := []string{"--config", w.dir, "--ca-dir", filepath.Join(t.TempDir(), "ca"), "--jwks", issuer.JWKSFile(t), "--token-issuer", issuerName, "--log-level", "error"}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	cmd := newCommand()
	cmd.SetArgs(args)
	cmd.SetErr(io.Discard)
	wg.Go(func() {
		if err := cmd.ExecuteContext(ctx); err != nil {
			t.Error(err)
		}
	})
	for i, c := range [][2]string{{"default", "client-a"}, {"default", "asking-a"}, {"default", "asking-b"}, {"other", "client-c"}, {"istio-system", "client-gateway"}} {
		p := newPretender(t, c[0], c[1], fmt.Sprintf("10.244.99.%d", i+1), seed*10+uint64(i))
		w.clients = append(w.clients, p)
		w.move(p, 0)
		wg.Go(func() { p.run(ctx) })
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	w.eventually("weftd is ready", func() string {
		r, err := http.Get("http://127.0.0.1:15014/ready")
		if err != nil {
			return err.Error()
		}
		r.Body.Close()
		return strings.TrimPrefix(r.Status, "200 OK")
	})
	return w
}

// move gives a client's pod other labels.
func (w *watched) move(p *pretender, chance int) {
	labels := []string{"app: sleep", "app: reviews, version: v1", "app: ratings, tier: a", "app: client"}[chance%4]
	template, discovery := "sidecar", "eager"
	if asking(p) {
		discovery = "on-demand"
	}
	if p.pod == "client-gateway" {
		template, labels = "gateway", "istio: ingressgateway"
	}
	w.present[p.pod] = true
	w.write("client_"+p.pod, fmt.Sprintf(clientPod, p.pod, p.namespace, labels, template, discovery, p.address, p.address), false)
}

// asking reports whether a client is told what it asks for.
func asking(p *pretender) bool { return strings.HasPrefix(p.pod, "asking") }

// demand is what the clients of a workload have asked for, as weftd says.
func demand(workload string) *envoy.Demand {
	d := &envoy.Demand{Workload: workload}
	r, err := http.Get("http://127.0.0.1:15014/debug/demandz?workload=" + workload)
	if err != nil {
		return d
	}
	defer r.Body.Close()
	var list []struct{ VirtualHosts, Clusters []string }
	if json.NewDecoder(r.Body).Decode(&list) == nil && len(list) == 1 {
		d = d.With(envoy.VirtualHost, list[0].VirtualHosts...).With(envoy.Cluster, list[0].Clusters...)
	}
	return d
}

// happen writes an event to files, one for each object, and now and then touches the clients' pods.
func (w *watched) happen(e meshtest.Event) {
	chance := e.Rand()
	for _, k := range e.Remove {
		if err := os.Remove(w.file(name(k))); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
	for _, o := range e.Apply {
		text := manifestOf(w.t, o)
		if text == "" {
			continue
		}
		key, err := mesh.KeyOf(o)
		if err != nil {
			w.t.Fatal(err)
		}
		w.write(name(key), text, chance.IntN(4) == 0)
	}
	p := w.clients[chance.IntN(len(w.clients))]
	if asking(p) {
		p.ask(fmt.Sprint([]int{80, 9080}[chance.IntN(2)], "/", []string{"reviews", "ratings.default", "sleep.other.svc", "shop.example.com", "a.example.com", "nobody", "a b"}[chance.IntN(7)]))
	}
	switch chance.IntN(12) {
	case 0, 1:
		w.move(p, chance.IntN(4))
	case 2:
		if w.present[p.pod] {
			w.present[p.pod] = false
			if err := os.Remove(w.file("client_" + p.pod)); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

func name(k mesh.Key) string { return k.Kind + "_" + k.Namespace + "_" + k.Name }

// manifestOf is an object as a file; empty when it is none that weftd would take.
func manifestOf(t *testing.T, o runtime.Object) string {
	text, err := yaml.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	objects, _, err := manifest.Decode(strings.NewReader(string(text)), "")
	if err != nil || mesh.NewStore(mesh.Options{}).Apply(objects...) != nil {
		return ""
	}
	return string(text)
}

func (w *watched) file(name string) string { return filepath.Join(w.dir, name+".yaml") }

func (w *watched) write(name, text string, inPlace bool) {
	path := w.file(name)
	if !inPlace {
		path = filepath.Join(w.dir, ".new")
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if !inPlace {
		if err := os.Rename(path, w.file(name)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// settle waits until each client has what the files say.
func (w *watched) settle(event int) {
	w.t.Helper()
	for _, p := range w.clients {
		if !w.present[p.pod] {
			w.move(p, event)
		}
	}
	objects, _, err := manifest.Read(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	store := mesh.NewStore(mesh.Options{})
	if err := store.Apply(objects...); err != nil {
		w.t.Fatal(err)
	}
	world := envoy.NewWorld(store.Snapshot(), nil)
	for _, c := range w.clients {
		p := envoy.Proxy{Kind: envoy.Sidecar, Namespace: c.namespace, Pod: c.pod, ServiceAccount: "client", Workload: store.Snapshot().Workload(c.namespace, c.pod)}
		if c.pod == "client-gateway" {
			p.Kind = envoy.Router
		}
		w.eventually(fmt.Sprintf("event %d: %s/%s has what the files say", event, c.namespace, c.pod), func() string {
			if asking(c) {
				p.Demand = demand(c.namespace + "/client")
			}
			return c.lacks(world.Sets(p))
		})
	}
}

func (w *watched) eventually(what string, wrong func() string) {
	w.t.Helper()
	var last string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if last = wrong(); last == "" {
			return
		}
	}
	w.t.Fatalf("not within 30 s: %s\n%s", what, last)
}
