package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/sandbox/api"
	"github.com/weft-mesh/weft/sandbox/store"
	"github.com/weft-mesh/weft/sandbox/vip"
)

func TestTheEmbeddedManifestsAreValid(t *testing.T) {
	for _, f := range []IPFamily{IPv4, IPv6, Dual} {
		t.Run(string(f), func(t *testing.T) {
			plan := f.plan()
			s := &api.Server{Store: store.New(), Networks: plan.networks(), Reserved: plan.reserved(), Mesh: checkMesh}
			values, err := meshValues("/run/weft/sandbox/default", Options{Mesh: []string{"accessLogFile=/dev/stdout"}, ProxyImage: "envoy:1"})
			if err != nil {
				t.Fatal(err)
			}
			for file, v := range map[string]map[string]string{"node.yaml": nodeValues(plan), "mesh.yaml": values} {
				docs, err := systemDocuments(file, v)
				if err != nil {
					t.Fatal(err)
				}
				results, err := s.Apply(t.Context(), docs, api.ApplyOptions{})
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range results {
					if r.Error != "" {
						t.Error(r.Error)
					}
				}
			}
			dns := store.Get[*corev1.Service](s.Store, "services", "kube-system", "kube-dns")
			if dns.Spec.ClusterIP != plan.DNS[0].String() || len(dns.Spec.ClusterIPs) != len(plan.DNS) {
				t.Errorf("kube-dns has %v, want %v", dns.Spec.ClusterIPs, plan.DNS)
			}
		})
	}
}

func TestSettingsOfMeshConfig(t *testing.T) {
	got, err := meshConfig([]string{"accessLogFile=/dev/stdout", "meshConfig.defaultConfig.concurrency=2", "enableAutoMtls=false"})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := kyaml.Unmarshal([]byte(got), &m); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"rootNamespace": "istio-system", "trustDomain": "cluster.local", "accessLogFile": "/dev/stdout",
		"defaultConfig": map[string]any{"concurrency": float64(2)}, "enableAutoMtls": false,
	}
	if d := cmp.Diff(want, m); d != "" {
		t.Error(d)
	}
	for bad, why := range map[string]string{"x": "write KEY=VALUE", "=x": "write KEY=VALUE", "accessLogFile=[": "not YAML", "nope=1": "nope is not a field"} {
		if _, err := meshConfig([]string{bad}); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("--set %s: %v, want %s", bad, err, why)
		}
	}
	if _, err := meshConfig([]string{"accessLogFile=x", "accessLogFile.y=z"}); err == nil || !strings.Contains(err.Error(), "is a value already") {
		t.Errorf("a setting below a value: %v", err)
	}
}

func TestServiceAddressesLeadToReadyEndpointsOfTheirFamily(t *testing.T) {
	yes, no := true, false
	meta := metav1.ObjectMeta{Namespace: "default", Name: "web"}
	svc := &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5", "fd00::5"},
		Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: "TCP"}, {Name: "dns", Port: 53, Protocol: "UDP"}, {Name: "sctp", Port: 9, Protocol: "SCTP"}},
	}, Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{{IP: "10.97.0.1"}}}}}
	http, proto, number := "http", corev1.ProtocolTCP, int32(8080)
	slice := func(t discoveryv1.AddressType, eps ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: t,
			Ports: []discoveryv1.EndpointPort{{Name: &http, Protocol: &proto, Port: &number}}, Endpoints: eps}
	}
	ep := func(ip string, ready, serving *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving}}
	}
	show := func(vs []vip.VIP) (out []string) {
		for _, v := range vs {
			out = append(out, fmt.Sprintf("%d %s -> %v", v.Protocol, v.Address, v.Endpoints))
		}
		return out
	}
	got := show(vips([]*corev1.Service{svc}, []*discoveryv1.EndpointSlice{
		slice("IPv4", ep("10.244.0.3", &yes, &yes), ep("10.244.0.2", nil, nil), ep("10.244.0.9", &no, &yes)),
		slice("IPv6", ep("fd00:244::9", &no, &yes), ep("fd00:244::8", &no, &no)),
	}))
	want := []string{
		"6 10.96.0.5:80 -> [10.244.0.2:8080 10.244.0.3:8080]",
		"6 [fd00::5]:80 -> [[fd00:244::9]:8080]", // none is ready: one that is going still serves
		"6 10.97.0.1:80 -> [10.244.0.2:8080 10.244.0.3:8080]",
		"17 10.96.0.5:53 -> []",
		"17 [fd00::5]:53 -> []",
		"17 10.97.0.1:53 -> []",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTokensAreThoseOfAnAPIServer(t *testing.T) {
	s := store.New()
	create := func(o store.Object) store.Object {
		t.Helper()
		made, err := s.Create(o)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	sa := create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart"}})
	create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	pod := create(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "cart-1"}, Spec: corev1.PodSpec{ServiceAccountName: "cart"}}).(*corev1.Pod)
	dir := t.TempDir()
	minter, err := newTokens(s, dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, expires, err := minter.Mint(t.Context(), pod, "istio-ca", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "jwks.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(b, &keys); err != nil {
		t.Fatal(err)
	}
	if !keys.Keys[0].IsPublic() {
		t.Error("jwks.json holds the private key")
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var std jwt.Claims
	var own kubernetesClaims
	if err := token.Claims(keys, &std, &own); err != nil {
		t.Fatal(err)
	}
	if err := std.Validate(jwt.Expected{Issuer: tokenIssuer, Subject: "system:serviceaccount:shop:cart", AnyAudience: jwt.Audience{"istio-ca"}}); err != nil {
		t.Error(err)
	}
	k := own.Kubernetes
	if k.Namespace != "shop" || k.ServiceAccount.UID != string(sa.GetUID()) || k.Pod.Name != "cart-1" || k.Pod.UID != string(pod.UID) || k.Node.Name != nodeName {
		t.Errorf("claims %+v", k)
	}
	if left := time.Until(expires); left < 59*time.Minute || left > time.Hour {
		t.Errorf("expires in %v, want an hour", left)
	}
	s.Remove(store.KeyOf(pod))
	if _, _, err := minter.Mint(t.Context(), pod, "istio-ca", time.Hour); err == nil {
		t.Error("a pod that is gone got a token")
	}
}

func TestOldKernelsAreRecognised(t *testing.T) {
	for v, want := range map[string]bool{"4.19.0-26-amd64": true, "5.9.16": true, "5.10.0": false, "5.10-rc1": false, "6.18.44-fc": false, "10.0": false, "unknown": false, "": false} {
		if got := older(v, oldestKernel); got != want {
			t.Errorf("%q older than %s: %t, want %t", v, oldestKernel, got, want)
		}
	}
}

func TestAThreadComesBackToItsNetworkNamespace(t *testing.T) {
	kit.Root(t)
	home, _ := nsInode("/proc/thread-self/ns/net")
	for range 20 {
		if err := onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
			t.Fatal(err)
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		if ino, ok := nsInode(f); ok && ino != home {
			t.Errorf("%s is in another network namespace", f)
		}
	}
}

func TestANodeThatCannotBeMadeLeavesNothing(t *testing.T) {
	kit.Root(t)
	path := filepath.Join(t.TempDir(), "netns")
	bad := IPv4.plan()
	bad.Services = append(bad.Services, netip.MustParsePrefix("fd00::/64")) // a route without a source of its family
	bad.Node = append(bad.Node, bad.Node[0])                                // the same address twice
	if err := createNode(path, bad); err == nil {
		t.Fatal("no error")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", path, err)
	}
	if err := createNode(path, Dual.plan()); err != nil {
		t.Fatal(err)
	}
	if _, mounted := mountedNS(path); !mounted {
		t.Error("the namespace is not mounted")
	}
	if err := destroyNode(path); err != nil {
		t.Error(err)
	}
	if err := destroyNode(path); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestAbandonedRunsAreRecognised(t *testing.T) {
	kit.Root(t)
	state := t.TempDir()
	for _, n := range []string{fmt.Sprintf("run-%d", os.Getpid()), "run-4194000", "mine", "run-x"} {
		if err := os.Mkdir(filepath.Join(state, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := CleanAbandoned(context.Background(), state, "run-"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(Names(state), " "); got != fmt.Sprintf("mine run-%d run-x", os.Getpid()) {
		t.Errorf("left: %s; only the run whose process is gone may go", got)
	}
}
