package kube

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/mesh"
)

// wire is a TCP connection to the API server that can be cut.
type wire struct {
	t        *testing.T
	listener net.Listener

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
}

func newWire(t *testing.T) *wire {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, listener: l, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); w.Cut() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go w.carry(c)
		}
	}()
	return w
}

func (w *wire) carry(c net.Conn) {
	defer c.Close()
	u, err := url.Parse(kubernetes.Host)
	if err != nil {
		return
	}
	w.mu.Lock()
	cut := w.cut
	w.mu.Unlock()
	if cut {
		return
	}
	server, err := net.Dial("tcp", u.Host)
	if err != nil {
		return
	}
	defer server.Close()
	w.mu.Lock()
	w.conns[c] = true
	w.mu.Unlock()
	go func() { io.Copy(server, c); server.Close() }()
	io.Copy(c, server)
	w.mu.Lock()
	delete(w.conns, c)
	w.mu.Unlock()
}

func (w *wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	for c := range w.conns {
		c.Close()
	}
}

func (w *wire) Mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = false
}

func TestNothingIsLostWhileTheConnectionIsCut(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	api.InstallDefinitions("virtualservices")
	api.Apply(cluster)
	const route = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: %s, namespace: default, labels: {rev: "1"}}
spec: {hosts: [base], http: [{route: [{destination: {host: base}}]}]}
`
	api.Apply(fmt.Sprintf(route, "old"))
	w := newWire(t)
	config := api.Config()
	config.Host = "https://" + w.listener.Addr().String()
	r := read(t, config)
	r.eventually("what was there at the start", has("VirtualService default/old"))

	before := contents(r.store.Snapshot())
	w.Cut()
	// A restarted API server has forgotten the events of before: the watches cannot go on
	// where they were, and only a new list shows what was deleted.
	api.Kill()
	api.Start()
	api.Delete(fmt.Sprintf(route, "old"))
	api.Apply(fmt.Sprintf(route, "new"))
	api.Delete("apiVersion: v1\nkind: Pod\nmetadata: {name: base-1, namespace: default}\nspec: {}")
	api.Apply("apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: default}\nspec: {ports: [{port: 80}]}")
	if after := contents(r.store.Snapshot()); fmt.Sprint(before) != fmt.Sprint(after) {
		t.Fatalf("the mesh changed while nobody could know:\n%s\n%s", before, after)
	}
	w.Mend()
	r.eventually("the deleted route is gone", hasNot("VirtualService default/old"))
	r.eventually("the deleted pod is gone", hasNot("Pod default/base-1"))
	r.eventually("the new route is there", has("VirtualService default/new"))
	r.eventually("the new service is there", has("Service default/late"))
}

// Objects come and go all the time, and the API server is killed twice meanwhile.
func TestTheMeshConvergesWhileTheAPIServerIsKilled(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	r := read(t, api.Config())
	c := api.Client()

	stop, stopped := make(chan struct{}), make(chan int)
	go func() {
		ctx, done := context.Background(), 0
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- done
				return
			default:
			}
			s := &corev1.Service{}
			s.Name, s.Namespace = fmt.Sprintf("s%d", i%40), "default"
			s.Labels = map[string]string{"rev": fmt.Sprint(i)}
			s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
			var err error
			if i/40%2 == 0 {
				err = c.Create(ctx, s)
			} else if i%3 != 0 {
				err = c.Delete(ctx, s)
			}
			if err == nil { // errors are what a killed server answers
				done++
			}
		}
	}()
	for range 2 {
		r.eventually("services come", has("Service default/s1"))
		api.Kill()
		api.Start()
	}
	close(stop)
	t.Logf("%d changes were made", <-stopped)

	var list corev1.ServiceList
	if err := c.List(context.Background(), &list); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mesh has what the API server has", func(s *mesh.Snapshot) bool {
		have := map[string]string{}
		for _, svc := range s.VisibleServices("") {
			have[svc.Namespace+"/"+svc.Name] = svc.Labels["rev"]
		}
		same := len(have) == len(list.Items)
		for _, s := range list.Items {
			rev, ok := have[s.Namespace+"/"+s.Name]
			same = same && ok && rev == s.Labels["rev"]
		}
		return same
	})
}
