package xds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	signing "istio.io/api/security/v1alpha1"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity/identitytest"
)

func withToken(t testing.TB, token string) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

func TestWithoutAGoodTokenThereIsNoStream(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	stranger := identitytest.NewIssuer(t, issuerName, "k1")
	for _, c := range []struct {
		name   string
		header []string
		code   codes.Code
		says   string
	}{
		{"no token", nil, codes.Unauthenticated, "no token"},
		{"empty token", []string{"authorization", "Bearer "}, codes.Unauthenticated, "not of the form"},
		{"password", []string{"authorization", "Basic dTpw"}, codes.Unauthenticated, "not of the form"},
		{"two tokens", []string{"authorization", "Bearer " + f.token(time.Hour), "authorization", "Bearer x"}, codes.Unauthenticated, "more than one"},
		{"other issuer's key", []string{"authorization", "Bearer " + stranger.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)}, codes.Unauthenticated, "signature"},
		{"other service account", []string{"authorization", "Bearer " + f.issuer.Token(t, "default", "admin", "reviews-1", "uid-1", time.Hour)}, codes.Unavailable, "runs as reviews"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.config.PodTimeout = time.Millisecond
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			stream, err := discovery.NewAggregatedDiscoveryServiceClient(f.dial(true)).DeltaAggregatedResources(metadata.AppendToOutgoingContext(ctx, c.header...))
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&discovery.DeltaDiscoveryRequest{Node: testNode(), TypeUrl: envoy.Cluster.TypeURL()}) // may fail: the stream is being refused
			_, err = stream.Recv()
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %s with %q", err, c.code, c.says)
			}
		})
	}
}

func TestAStreamEndsWhenItsTokenExpires(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	expires := 1500 * time.Millisecond
	c := f.connect(f.token(expires))
	begin := time.Now()
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	err := c.ends()
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "expired") {
		t.Errorf("ended with %v", err)
	}
	if lived := time.Since(begin); lived > expires+time.Second {
		t.Errorf("the stream lived for %s", lived)
	}
}

func TestPlaintextShowsConfigurationOnLoopbackAndNeverSecrets(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect("")
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	c.subscribe(envoy.Secret, "default", "ROOTCA")
	c.expect(envoy.Secret, "-ROOTCA", "-default")

	// A token does not change that: what travels in plaintext is nobody's secret.
	conn := f.dial(false)
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(withToken(t, f.token(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: testNode(), TypeUrl: envoy.Secret.TypeURL(), ResourceNamesSubscribe: []string{"default"}}); err != nil {
		t.Fatal(err)
	}
	r, err := stream.Recv()
	if err != nil || len(r.Resources) != 0 {
		t.Errorf("got %v, %v", r, err)
	}
}

func TestStoppingTellsProxiesToGoElsewhere(t *testing.T) {
	f := newFixture(t, nil, set("s", 1, service("a", "1")...))
	c := f.connect(f.token(time.Hour))
	c.subscribe(envoy.Cluster)
	c.expect(envoy.Cluster, "a@1")
	f.Stop()
	if err := c.ends(); status.Code(err) != codes.Unavailable {
		t.Errorf("ended with %v", err)
	}
}

func TestAGatewayIsWhatTheInjectorSays(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        envoy.Kind
	}{
		{nil, envoy.Sidecar},
		{map[string]string{"sidecar.istio.io/status": `{"templates":["gateway"]}`}, envoy.Router},
		{map[string]string{"sidecar.istio.io/status": `{"templates":["sidecar"]}`, "inject.istio.io/templates": "gateway"}, envoy.Sidecar},
		{map[string]string{"sidecar.istio.io/status": `{"containers":["istio-proxy"]}`, "inject.istio.io/templates": "mine, gateway"}, envoy.Router},
		{map[string]string{"sidecar.istio.io/status": `nonsense`}, envoy.Sidecar},
	} {
		if got := kind(c.annotations); got != c.want {
			t.Errorf("%v: %s, want %s", c.annotations, got, c.want)
		}
	}
}

func TestACertificateRequestIsSignedForTheCaller(t *testing.T) {
	f := newFixture(t, nil)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	request := &signing.IstioCertificateRequest{Csr: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), ValidityDuration: 60}
	r, err := signing.NewIstioCertificateServiceClient(f.dial(true)).CreateCertificate(withToken(t, f.token(time.Hour)), request)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(r.CertChain[0]))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if leaf.URIs[0].String() != "spiffe://cluster.local/ns/default/sa/reviews" || time.Until(leaf.NotAfter) > time.Minute {
		t.Errorf("signed for %v until %s", leaf.URIs, leaf.NotAfter)
	}
	if last := r.CertChain[len(r.CertChain)-1]; last != string(f.authority.Roots()) {
		t.Error("the last certificate is not the root")
	}
	if _, err := signing.NewIstioCertificateServiceClient(f.dial(true)).CreateCertificate(t.Context(), request); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a token: %v", err)
	}
}

func TestDebugPagesAreNotForEverybody(t *testing.T) {
	f := newFixture(t, nil)
	h := f.Guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {}), "istio-system")
	for _, c := range []struct {
		from, token string
		want        int
	}{
		{"127.0.0.1:1", "", 200},
		{"[::1]:1", "", 200},
		{"10.244.0.5:1", "", 401},
		{"10.244.0.5:1", "nonsense", 401},
		{"10.244.0.5:1", f.token(time.Hour), 403},
		{"10.244.0.5:1", f.issuer.Token(t, "istio-system", "kiali", "kiali-1", "uid-3", time.Hour), 200},
	} {
		r := httptest.NewRequest(http.MethodGet, "/debug/syncz", nil)
		r.RemoteAddr = c.from
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("from %s with token %.10q: %d, want %d", c.from, c.token, w.Code, c.want)
		}
		if c.token != "" && strings.Contains(w.Body.String(), c.token) {
			t.Error("the answer repeats the token")
		}
	}
}
