package envoy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bootstrap "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/mesh"
)

var update = flag.Bool("update", false, "rewrite testdata/*/out.yaml")

// A golden directory holds in.yaml, what a user adds to testdata/bookinfo.yaml, and out.yaml, what that changes in the
// configuration of one proxy. The first line of in.yaml may name the proxy:
//
//	# proxy: pod.namespace [gateway|inbound|inline] [full] [on-demand name...]
//
// Shown is what a sidecar's app reaches ("outbound"); "inbound" shows its own side instead, "full" also what does not differ
// from plain Bookinfo. "inline" is a state-of-the-world stream, "on-demand" a sidecar whose workload has asked for the names that follow.
func TestGoldens(t *testing.T) {
	ins, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(ins) == 0 {
		t.Fatalf("no goldens: %v", err)
	}
	base := contents(t, "testdata/bookinfo.yaml")
	for _, in := range ins {
		t.Run(filepath.Base(filepath.Dir(in)), func(t *testing.T) {
			t.Parallel()
			feature := contents(t, in)
			plain := NewWorld(snapshotOf(t, base), nil)
			world := NewWorld(snapshotOf(t, base+"\n---\n"+feature), nil)
			before := setsOf(t, plain, feature)
			after := setsOf(t, world, feature)
			if slices.Contains(shown(feature), "full") {
				before = nil
			}
			got := render(t, before, after, world.Problems())

			out := filepath.Join(filepath.Dir(in), "out.yaml")
			if *update {
				if err := os.WriteFile(out, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(contents(t, out), got); diff != "" {
				t.Errorf("configuration changed; if that is meant, run go test ./envoy -run TestGoldens -update\n%s", diff)
			}
			validate(t, after)
		})
	}
}

func contents(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// shown gives the words after "# proxy:" in the first line; sleep.default when it is something else.
func shown(in string) []string {
	first, _, _ := strings.Cut(in, "\n")
	if rest, ok := strings.CutPrefix(first, "# proxy: "); ok {
		return strings.Fields(rest)
	}
	return []string{"sleep.default"}
}

func setsOf(t *testing.T, w *World, in string) []*Set {
	t.Helper()
	sets := w.Sets(proxyOf(t, w, in))
	inbound, gateway := slices.Contains(shown(in), "inbound"), slices.Contains(shown(in), "gateway")
	return slices.DeleteFunc(sets, func(s *Set) bool {
		kind, _, _ := strings.Cut(s.Scope, "/")
		return !gateway && inbound == slices.Contains([]string{"outbound", "outbound-inline", "on-demand", "asked"}, kind)
	})
}

func proxyOf(t *testing.T, w *World, in string) Proxy {
	t.Helper()
	words := shown(in)
	p := Proxy{Kind: Sidecar}
	p.Pod, p.Namespace, _ = strings.Cut(words[0], ".")
	if slices.Contains(words, "gateway") {
		p.Kind = Router
	}
	p.Workload = w.snap.Workload(p.Namespace, p.Pod)
	if p.Workload == nil { // of the feature only
		p.Workload = &mesh.Workload{Meta: mesh.Meta{Ref: mesh.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Pod}}}
	}
	p.ServiceAccount = p.Workload.ServiceAccount
	if i := slices.Index(words, "on-demand"); i >= 0 {
		p.Demand = &Demand{Workload: p.Namespace + "/" + p.ServiceAccount}
		for _, name := range words[i+1:] {
			t := VirtualHost
			if strings.Contains(name, "|") {
				t = Cluster
			}
			p.Demand = p.Demand.With(t, name)
		}
	}
	p.Inline = slices.Contains(words, "inline")
	p.Addresses = p.Workload.Addresses
	return p
}

// render prints what is in after and not, or not the same, in before.
func render(t *testing.T, before, after []*Set, problems []Problem) string {
	t.Helper()
	old := map[string]string{}
	for _, r := range all(before) {
		old[r.Type.TypeURL()+" "+r.Name] = r.Version
	}
	var b strings.Builder
	for _, r := range all(after) {
		id := r.Type.TypeURL() + " " + r.Name
		if old[id] != r.Version {
			b.WriteString("---\n")
			b.WriteString(yamlOf(t, unpack(t, r)))
		}
		delete(old, id)
	}
	for _, id := range slices.Sorted(mapKeys(old)) {
		fmt.Fprintf(&b, "---\nremoved: %s\n", strings.TrimPrefix(id, "type.googleapis.com/"))
	}
	for _, p := range problems {
		fmt.Fprintf(&b, "---\nproblem: %q\n", p.Ref.String()+": "+p.Field+": "+p.Message)
	}
	return strings.TrimPrefix(b.String(), "---\n")
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func all(sets []*Set) []*Resource {
	var out []*Resource
	for t := range NumTypes {
		for _, s := range sets {
			out = append(out, s.Resources[t]...)
		}
	}
	return out
}

func unpack(t *testing.T, r *Resource) proto.Message {
	t.Helper()
	m, err := (&anypb.Any{TypeUrl: r.Type.TypeURL(), Value: r.Body}).UnmarshalNew()
	if err != nil {
		t.Fatalf("%s: %v", r.Name, err)
	}
	return m
}

func yamlOf(t *testing.T, m proto.Message) string {
	t.Helper()
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	j, err := protojson.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := yaml.JSONToYAML(j)
	if err != nil {
		t.Fatal(err)
	}
	return string(y)
}

// validate has the sets checked by protoc-gen-validate's rules and by Envoy itself.
func validate(t *testing.T, sets []*Set) {
	t.Helper()
	b := static(t, sets)
	if err := b.ValidateAll(); err != nil {
		t.Errorf("%v", err)
	}
	config, err := proto.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "envoy.pb")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(kit.Envoy(t), "--mode", "validate", "-c", path, "-l", "error").CombinedOutput()
	if err != nil {
		t.Errorf("Envoy refuses it: %v\n%s", err, bytes.TrimSpace(out))
	}
}

// static is a bootstrap that holds the sets as if they were written by hand: routes inside their listeners and
// endpoints inside their clusters, because Envoy validates only what it does not have to fetch.
func static(t *testing.T, sets []*Set) *bootstrap.Bootstrap {
	t.Helper()
	routes := map[string]*route.RouteConfiguration{}
	var hosts []*route.VirtualHost
	endpoints := map[string]*endpoint.ClusterLoadAssignment{}
	b := &bootstrap.Bootstrap{
		Node:            &core.Node{Id: "sidecar~10.244.0.5~sleep.default~default.svc.cluster.local", Cluster: "sleep.default"},
		StaticResources: &bootstrap.Bootstrap_StaticResources{},
	}
	var listeners []*listener.Listener
	for _, r := range all(sets) {
		switch m := unpack(t, r).(type) {
		case *cluster.Cluster:
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			b.StaticResources.Clusters = append(b.StaticResources.Clusters, m)
		case *endpoint.ClusterLoadAssignment:
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			endpoints[r.Name] = m
		case *route.RouteConfiguration:
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			routes[r.Name] = m
		case *route.VirtualHost:
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			if m.Name != r.Name {
				t.Errorf("virtual host %q as resource %q: Envoy would never remove it", m.Name, r.Name)
			}
			hosts = append(hosts, m)
		case *listener.Listener:
			if err := m.ValidateAll(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			listeners = append(listeners, m)
		case *tls.Secret: // the files it names are in the gateway's pod; replaced below
		}
	}
	for _, c := range b.StaticResources.Clusters {
		if c.GetType() == cluster.Cluster_EDS {
			a := endpoints[c.Name]
			if a == nil {
				t.Errorf("cluster %s has no endpoints resource: it would warm for ever", c.Name)
				a = &endpoint.ClusterLoadAssignment{ClusterName: c.Name}
			}
			c.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_STATIC}
			c.EdsClusterConfig = nil
			c.LoadAssignment = a
		}
	}
	if !slices.ContainsFunc(b.StaticResources.Clusters, func(c *cluster.Cluster) bool { return c.Name == blackHoleCluster }) {
		b.StaticResources.Clusters = append(b.StaticResources.Clusters, &cluster.Cluster{Name: blackHoleCluster})
	}
	b.StaticResources.Listeners = append(b.StaticResources.Listeners, listeners...)
	for _, h := range hosts {
		name, _, _ := strings.Cut(h.Name, "/")
		table := routes[name]
		if table.GetVhds() == nil && len(table.GetVirtualHosts()) == 0 {
			t.Errorf("virtual host %s is in no table", h.Name)
			continue
		}
		table.Vhds = nil
		table.VirtualHosts = append(table.VirtualHosts, h)
	}
	for _, table := range routes {
		table.Vhds = nil // of a table without any host yet
	}
	secrets := map[string]*tls.Secret{}
	rewrite(t, b.ProtoReflect(), func(m proto.Message) {
		switch m := m.(type) {
		case *hcm.HttpConnectionManager:
			if rds := m.GetRds(); rds != nil {
				rc := routes[rds.RouteConfigName]
				if rc == nil {
					t.Errorf("routes %s, which a listener needs, are sent by nobody", rds.RouteConfigName)
					rc = &route.RouteConfiguration{Name: rds.RouteConfigName}
				}
				m.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: rc}
			}
		case *tls.CommonTlsContext:
			for _, c := range m.GetTlsCertificateSdsSecretConfigs() {
				c.SdsConfig = nil
				secrets[c.Name] = &tls.Secret{Name: c.Name, Type: &tls.Secret_TlsCertificate{TlsCertificate: testCertificate(t)}}
			}
			for _, c := range []*tls.SdsSecretConfig{
				m.GetValidationContextSdsSecretConfig(), m.GetCombinedValidationContext().GetValidationContextSdsSecretConfig(),
			} {
				if c != nil {
					c.SdsConfig = nil
					secrets[c.Name] = &tls.Secret{Name: c.Name, Type: &tls.Secret_ValidationContext{
						ValidationContext: &tls.CertificateValidationContext{TrustedCa: testCertificate(t).CertificateChain},
					}}
				}
			}
		}
	})
	for _, s := range secrets {
		b.StaticResources.Secrets = append(b.StaticResources.Secrets, s)
	}
	return b
}

// rewrite calls change for every message inside m, through Any too, parents first.
func rewrite(t *testing.T, m protoreflect.Message, change func(proto.Message)) {
	t.Helper()
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		rewrite(t, inner.ProtoReflect(), change)
		a.Value = marshal(inner)
		return
	}
	change(m.Interface())
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					rewrite(t, v.Message(), change)
					return true
				})
			}
		case f.IsList():
			if f.Message() != nil {
				for i := range v.List().Len() {
					rewrite(t, v.List().Get(i).Message(), change)
				}
			}
		case f.Message() != nil:
			rewrite(t, v.Message(), change)
		}
		return true
	})
}

// testCertificate stands for what SDS would bring.
func testCertificate(t *testing.T) *tls.TlsCertificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, DNSNames: []string{"test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inline := func(kind string, der []byte) *core.DataSource {
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{
			InlineBytes: pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}),
		}}
	}
	return &tls.TlsCertificate{CertificateChain: inline("CERTIFICATE", der), PrivateKey: inline("PRIVATE KEY", pkcs8)}
}
