package identity

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/weft-mesh/weft/identity/identitytest"
)

const issuerName = "https://kubernetes.default.svc"

func verifier(t testing.TB, i *identitytest.Issuer) *Verifier {
	t.Helper()
	keys, err := OpenKeys(t.Context(), i.JWKSFile(t), KeyOptions{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return &Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"}
}

func TestATokenTellsWhichPodItBelongsTo(t *testing.T) {
	i := identitytest.NewIssuer(t, issuerName, "k1")
	got, err := verifier(t, i).Verify(t.Context(), i.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if time.Until(got.Expires) < 59*time.Minute {
		t.Errorf("expires %s", got.Expires)
	}
	got.Expires = time.Time{}
	want := Caller{Namespace: "default", ServiceAccount: "reviews", Pod: "reviews-1", PodUID: "uid-1", Node: "node"}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestATokenThatProvesNothingIsRefusedAndTheReasonIsSaid(t *testing.T) {
	i := identitytest.NewIssuer(t, issuerName, "k1")
	stranger := identitytest.NewIssuer(t, issuerName, "k1")
	unpublished := identitytest.NewIssuer(t, issuerName, "k9")
	v := verifier(t, i)
	with := func(change func(map[string]any)) string {
		c := i.Claims("default", "reviews", "reviews-1", "uid-1", time.Hour)
		change(c)
		return i.Sign(t, c)
	}
	bound := func(c map[string]any) map[string]any { return c["kubernetes.io"].(map[string]any) }
	good := i.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)
	parts := strings.Split(good, ".")
	symmetric, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(strings.Repeat("k", 32))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	hs, err := symmetric.Sign([]byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	hmac, err := hs.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + "."
	for _, c := range []struct{ name, token, says string }{
		{"empty", "", "empty"},
		{"no JWT", "secret-text", "not a JWT"},
		{"no signature", none, "not a JWT"},
		{"symmetric", hmac, "not a JWT"},
		{"huge", strings.Repeat("x", 17<<10), "more than"},
		{"other key with the same ID", stranger.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour), "signature is wrong"},
		{"unknown key", unpublished.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour), `key "k9"`},
		{"changed payload", parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + "." + parts[2], "signature is wrong"},
		{"issuer", with(func(c map[string]any) { c["iss"] = "https://elsewhere" }), "issuer"},
		{"audience", with(func(c map[string]any) { c["aud"] = []string{"vault"} }), `want "istio-ca"`},
		{"no audience", with(func(c map[string]any) { delete(c, "aud") }), `want "istio-ca"`},
		{"expired", with(func(c map[string]any) { c["exp"] = time.Now().Add(-time.Second).Unix() }), "expired at"},
		{"no expiry", with(func(c map[string]any) { delete(c, "exp") }), "no expiry"},
		{"later", with(func(c map[string]any) { c["nbf"] = time.Now().Add(time.Minute).Unix() }), "valid only from"},
		{"issued later", with(func(c map[string]any) { c["iat"] = time.Now().Add(time.Minute).Unix() }), "in the future"},
		{"no pod", with(func(c map[string]any) { delete(bound(c), "pod") }), "not bound to a pod"},
		{"no UID", with(func(c map[string]any) { bound(c)["pod"] = map[string]any{"name": "reviews-1"} }), "not bound to a pod"},
		{"no service account", with(func(c map[string]any) { delete(bound(c), "serviceaccount") }), "lacks"},
		{"other token", with(func(c map[string]any) { delete(c, "kubernetes.io") }), "kubernetes.io claim"},
		{"contradiction", with(func(c map[string]any) { c["sub"] = "system:serviceaccount:default:admin" }), "contradicts"},
		{"claims of other types", with(func(c map[string]any) { c["kubernetes.io"] = 1 }), "not what Kubernetes writes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			caller, err := v.Verify(t.Context(), c.token)
			if !errors.Is(err, ErrToken) {
				t.Fatalf("got %+v, %v", caller, err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("the message %q does not say %q", err, c.says)
			}
			if c.token != "" && (strings.Contains(err.Error(), c.token) || len(parts) == 3 && strings.Contains(err.Error(), parts[2])) {
				t.Errorf("the message contains the token: %q", err)
			}
		})
	}
}

func TestAClockThatIsALittleBehindDoesNotKeepPodsOut(t *testing.T) {
	i := identitytest.NewIssuer(t, issuerName, "k1")
	v := verifier(t, i)
	v.Now = func() time.Time { return time.Now().Add(-5 * time.Second) }
	if _, err := v.Verify(t.Context(), i.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)); err != nil {
		t.Fatal(err)
	}
}

func TestANewSigningKeyIsFollowedInAFile(t *testing.T) {
	first, second := identitytest.NewIssuer(t, issuerName, "k1"), identitytest.NewIssuer(t, issuerName, "k2")
	path := first.JWKSFile(t)
	keys, err := OpenKeys(t.Context(), path, KeyOptions{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v := &Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"}
	token := second.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)
	if _, err := v.Verify(t.Context(), token); err == nil {
		t.Fatal("a key that is not in the file was accepted")
	}
	// A broken file in between changes nothing.
	if err := os.WriteFile(path, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), first.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, second.JWKS(t), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		_, err := v.Verify(t.Context(), token)
		return err == nil
	})
}

func TestKeysFromAURLAreAskedForOnceAndAgainForAnUnknownKey(t *testing.T) {
	first := identitytest.NewIssuer(t, issuerName, "k1")
	var asked atomic.Int32
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer node-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Write(first.JWKS(t))
	}))
	defer server.Close()
	dir := t.TempDir()
	ca, token := dir+"/ca.pem", dir+"/token"
	if err := os.WriteFile(ca, encodeCert(server.Certificate().Raw), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte("node-token\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := OpenKeys(t.Context(), server.URL, KeyOptions{CAFile: ca, TokenFile: token}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	v := &Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"}
	for range 10 {
		if _, err := v.Verify(t.Context(), first.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	unknown := identitytest.NewIssuer(t, issuerName, "made-up")
	for range 10 {
		if _, err := v.Verify(t.Context(), unknown.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)); !errors.Is(err, ErrToken) {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times; made-up key IDs must not become requests", n)
	}
}

func TestKeysThatCannotBeReadAreNotTheTokensFault(t *testing.T) {
	keys, err := OpenKeys(t.Context(), "http://127.0.0.1:1/jwks", KeyOptions{}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	i := identitytest.NewIssuer(t, issuerName, "k1")
	v := &Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"}
	if _, err := v.Verify(t.Context(), i.Token(t, "default", "reviews", "reviews-1", "uid-1", time.Hour)); !errors.Is(err, ErrKeys) {
		t.Fatal(err)
	}
}

func TestAMissingKeyFileIsAnErrorAtStart(t *testing.T) {
	if _, err := OpenKeys(t.Context(), t.TempDir()+"/jwks.json", KeyOptions{}, slog.New(slog.DiscardHandler)); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func FuzzVerify(f *testing.F) {
	i := identitytest.NewIssuer(f, issuerName, "k1")
	v := verifier(f, i)
	good := i.Token(f, "default", "reviews", "reviews-1", "uid-1", time.Hour)
	f.Add(good)
	f.Add("a.b.c")
	f.Add(strings.Replace(good, ".", "..", 1))
	payload := strings.Split(good, ".")[1]
	f.Fuzz(func(t *testing.T, token string) {
		caller, err := v.Verify(context.Background(), token)
		if err == nil && !strings.Contains(token, payload) {
			t.Fatalf("forged: %+v", caller)
		}
		if err != nil && caller != (Caller{}) {
			t.Fatalf("an identity beside the error %v", err)
		}
	})
}

// FuzzKeySet: whatever an issuer's page holds, only public keys for signatures come out.
func FuzzKeySet(f *testing.F) {
	f.Add(identitytest.NewIssuer(f, issuerName, "k1").JWKS(f))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeySet(data)
		if err == nil && len(keys) == 0 {
			t.Fatal("no error and no key")
		}
		for _, k := range keys {
			if !k.IsPublic() {
				t.Fatal("a key that is not public")
			}
		}
		if !json.Valid(data) && err == nil {
			t.Fatal("accepted what is not JSON")
		}
	})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("did not happen within 10 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
