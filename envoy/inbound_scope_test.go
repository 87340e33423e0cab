package envoy

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/mesh"
)

// own is the inbound side of one of Bookinfo's pods.
func (m *meshInMotion) own(pod, ip string) (workload, proof *Set) {
	m.t.Helper()
	p := Proxy{
		Kind: Sidecar, Namespace: "default", Pod: pod,
		Workload:  m.world.snap.Workload("default", pod),
		Addresses: []netip.Addr{netip.MustParseAddr(ip)},
	}
	return m.world.workloadSet(p), m.world.proofSet(p)
}

const reviewsReplica = `
apiVersion: v1
kind: Pod
metadata:
  name: reviews-v1-b
  namespace: default
  labels: {app: reviews, version: v1}
  annotations: {sidecar.istio.io/status: '{}'}
  ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: reviews-v1, uid: u, controller: true}]
spec: {serviceAccountName: bookinfo-reviews, containers: [{name: reviews, image: reviews}]}
status: {podIP: 10.244.0.29, podIPs: [{ip: 10.244.0.29}]}
`

func TestReplicasShareTheirInboundSideButNotTheirAddress(t *testing.T) {
	m := inMotion(t)
	second := strings.NewReplacer("reviews-v1-b", "reviews-v1-a", "10.244.0.29", "10.244.0.28").Replace(reviewsReplica)
	m.apply(reviewsReplica + "\n---\n" + second)
	a, proofA := m.own("reviews-v1-a", "10.244.0.28")
	b, proofB := m.own("reviews-v1-b", "10.244.0.29")
	if a != b {
		t.Errorf("two replicas have %s and %s", a.Scope, b.Scope)
	}
	if proofA.Scope == proofB.Scope {
		t.Errorf("two pods check the same address: %s", proofA.Scope)
	}
	other, _ := m.own("reviews-v2", "10.244.0.22")
	if other.Scope == a.Scope {
		t.Errorf("workloads with different labels share %s, although policies may tell them apart", a.Scope)
	}
	// The pod from which the scope was built goes; the other's configuration stays the same object.
	m.store.Delete(mesh.Key{Kind: "Pod", Namespace: "default", Name: "reviews-v1-a"})
	m.next()
	if left, _ := m.own("reviews-v1-b", "10.244.0.29"); left != b {
		t.Errorf("the remaining replica gets new configuration: %q", changed(b, left))
	}
}

func TestInboundSideChangesOnlyWhenItsOwnInputsDo(t *testing.T) {
	listener := []string{"envoy.listenerKind virtualInbound"}
	for _, c := range []struct {
		name, yaml string
		want       []string
	}{
		{"endpoint", oneEndpoint, nil},
		{"virtual service", timeoutForRatings, nil},
		{"the same again", contents(t, "testdata/bookinfo.yaml"), nil},
		{"another workload's policy", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: ratings, namespace: default}
spec: {selector: {matchLabels: {app: ratings}}, mtls: {mode: STRICT}}`, nil},
		{"strict", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}`, listener},
		{"limits", `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: default}
spec: {host: reviews, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}`,
			[]string{"envoy.clusterKind inbound|9080||"}},
		{"another port", `
apiVersion: v1
kind: Service
metadata: {name: reviews-admin, namespace: default}
spec: {clusterIP: 10.96.0.99, selector: {app: reviews}, ports: [{name: http, port: 7000}]}`,
			[]string{"envoy.clusterKind inbound|7000||", listener[0]}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := inMotion(t)
			before, proofBefore := m.own("reviews-v1", "10.244.0.21")
			m.apply(c.yaml)
			after, proofAfter := m.own("reviews-v1", "10.244.0.21")
			got := changed(before, after)
			if !slices.Equal(got, c.want) {
				t.Errorf("changed %q, want %q", got, c.want)
			}
			if c.want == nil && before != after {
				t.Errorf("a new set with nothing new in it")
			}
			if c.want != nil && after.Version <= before.Version {
				t.Errorf("version went from %d to %d", before.Version, after.Version)
			}
			if proofBefore != proofAfter {
				t.Errorf("the check of the redirection was sent again")
			}
		})
	}
}

func TestASidecarThatComesBeforeItsPodObeysItsNamespace(t *testing.T) {
	m := inMotion(t)
	m.apply(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}`)
	set, proof := m.own("nobody-knows-it-yet", "10.244.0.99")
	if len(proof.Resources[Cluster]) != 1 {
		t.Errorf("%d checks of one address", len(proof.Resources[Cluster]))
	}
	for _, ch := range unpackListener(t, set).FilterChains {
		m := ch.GetFilterChainMatch()
		if m.GetDestinationPort() == nil && m.GetTransportProtocol() != transportTLS {
			t.Errorf("under STRICT, chain %s takes plaintext", ch.Name)
		}
	}
}
