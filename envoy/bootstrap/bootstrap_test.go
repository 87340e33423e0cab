package bootstrap

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/weft-mesh/weft/e2e/kit"
	"google.golang.org/protobuf/encoding/protojson"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func cases() map[string]struct {
	Settings
	Params
} {
	type c = struct {
		Settings
		Params
	}
	return map[string]c{
		"sidecar": {Params: Params{Kind: Sidecar, App: "reviews", Metadata: []Field{
			{Name: "WORKLOAD_NAME", Text: "reviews-v1"}, {Name: "LABELS", JSON: `{"app":"reviews","version":"v1"}`},
		}}},
		"gateway": {Params: Params{Kind: Router, App: "istio-ingressgateway"}},
		"probes": {Params: Params{Kind: Sidecar, App: "app", Probes: []Probe{
			{Path: "/app-health/app/livez", Handler: HTTP, Port: 8080, Target: `/live?a=\1&b="x"$(POD_IP)`, Timeout: time.Second},
			{Path: "/app-health/app/readyz", Handler: HTTP, Port: 8080, Target: "/ready", Timeout: 5 * time.Second},
			{Path: "/app-health/app/startupz", Handler: HTTPS, Port: 8443, Target: "/", Timeout: time.Second},
			{Path: "/app-lifecycle/app/prestopz", Handler: HTTP, Port: 8080, Target: "/stop"},
			{Path: "/app-health/db/readyz", Handler: TCP, Port: 5432, Timeout: time.Second},
			{Path: "/app-health/rpc/readyz", Handler: GRPC, Port: 9000, Target: "my.Service", Timeout: 2 * time.Second},
		}}},
		"metrics": {Params: Params{Kind: Sidecar, App: "app", AppMetrics: &AppMetrics{Port: 9102, Path: `/metrics?a="b"&c=\n$(POD_IP)`}}},
		"settings": {
			Settings: Settings{
				DiscoveryAddress: "10.0.0.1:15012", DiscoverySAN: "istiod-canary.istio-system.svc", ClusterDomain: "example.org",
				IPv4Only: true, AdminPort: 15555, HealthPort: 15556, StatsFlushInterval: 10 * time.Second,
				Stats:         StatsInclusion{Prefixes: []string{"cluster.outbound|80||"}, Suffixes: []string{"cx_active"}, Regexps: []string{`^http\..*$`}},
				RuntimeValues: map[string]string{"a.b": "$(POD_IP)"},
			},
			Params: Params{Kind: Sidecar, App: "häß\"lich\n$(POD_IP)", Metadata: []Field{{Name: "X$(A)", Text: "</script>$$(POD_NAME)"}}},
		},
	}
}

func TestBootstrapIsWhatTheGoldenSays(t *testing.T) {
	for name, c := range cases() {
		t.Run(name, func(t *testing.T) {
			got := build(t, c.Settings, c.Params)
			if strings.ContainsAny(got, "\n\t") {
				t.Error("more than one line")
			}
			if strings.Contains(got, "@") && strings.Contains(got, `@"`) {
				t.Errorf("a marker is left in %s", got)
			}
			var out bytes.Buffer
			if err := json.Indent(&out, []byte(got), "", " "); err != nil {
				t.Fatalf("%v in %s", err, got)
			}
			out.WriteByte('\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), out.String()); d != "" {
				t.Errorf("differs from %s (run go test ./envoy/bootstrap -update and look at the difference):\n%s", file, d)
			}
			b := new(bootstrapv3.Bootstrap)
			if err := protojson.Unmarshal([]byte(expand(got, nil)), b); err != nil {
				t.Fatal(err)
			}
			if err := b.ValidateAll(); err != nil {
				t.Error(err)
			}
			if again := build(t, c.Settings, c.Params); again != got {
				t.Error("the second time other bytes came out")
			}
		})
	}
}

func TestEnvoyAcceptsTheBootstrap(t *testing.T) {
	envoy := kit.Envoy(t)
	for name, c := range cases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c.Settings.TokenFile, c.Settings.RootDocument = secrets(t, dir)
			text := expand(build(t, c.Settings, c.Params), environment("127.0.0.1"))
			out, err := exec.Command(envoy, "--mode", "validate", "--disable-hot-restart", "-l", "warning", "--config-yaml", text).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func TestNothingThatAUserWroteIsExpandedOrAddsAField(t *testing.T) {
	hostile := `x","evil":"$(POD_IP)$$(POD_IP)` + "\u2028\xff\\"
	text := expand(build(t, Settings{}, Params{
		Kind: Sidecar, App: hostile, Metadata: []Field{{Name: hostile, Text: hostile}},
		Probes: []Probe{{Path: "/" + hostile, Target: "/" + hostile, Port: 1}},
	}), environment("10.0.0.1"))
	b := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal([]byte(text), b); err != nil {
		t.Fatal(err)
	}
	want := strings.ToValidUTF8(hostile, "\ufffd")
	if got := b.Node.Metadata.Fields[want].GetStringValue(); got != want {
		t.Errorf("metadata %q came out as %q", want, got)
	}
	if got := b.Node.Cluster; got != want+".ns" {
		t.Errorf("node.cluster %q", got)
	}
	if got, want := b.Node.Id, "sidecar~10.0.0.1~pod.ns~ns.svc.cluster.local"; got != want {
		t.Errorf("node.id %q, want %q", got, want)
	}
	routes := b.StaticResources.Listeners[2]
	if s := protojson.Format(routes); strings.Contains(s, "10.0.0.1") {
		t.Errorf("a probe's path was expanded:\n%s", s)
	}
}

func TestATooLongBootstrapIsAnErrorAndNotAPodThatNeverStarts(t *testing.T) {
	tpl, err := New(Settings{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpl.Build(Params{Kind: Sidecar, Metadata: []Field{{Name: "X", Text: strings.Repeat("x", MaxSize)}}})
	if err == nil || !strings.Contains(err.Error(), "131071") {
		t.Errorf("got %v", err)
	}
}

func TestTwoProbesOnOnePathAreRefused(t *testing.T) {
	tpl, err := New(Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tpl.Build(Params{Probes: []Probe{{Path: "/a", Port: 1}, {Path: "/a", Port: 2}}}); err == nil {
		t.Error("accepted")
	}
}

func TestABadDiscoveryAddressNamesItself(t *testing.T) {
	for _, bad := range []string{"istiod", ":15012", "istiod:http", "istiod:0", "istiod:99999"} {
		if _, err := New(Settings{DiscoveryAddress: bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func build(t testing.TB, s Settings, p Params) string {
	t.Helper()
	tpl, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	text, err := tpl.Build(p)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func environment(ip string) map[string]string {
	return map[string]string{
		EnvPodName: "pod", EnvPodNamespace: "ns", EnvPodIP: ip, EnvInstanceIPs: ip, EnvServiceAccount: "sa", EnvNodeName: "node",
	}
}

// expand is kubelet's rule for command and args (Kubernetes: third_party/forked/golang/expansion).
func expand(s string, env map[string]string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			out.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			name := ""
			if end > 0 {
				name = s[i+2 : i+end]
			}
			v, ok := env[name]
			if end < 0 || !ok {
				out.WriteString("$(")
				i++
				continue
			}
			out.WriteString(v)
			i += end
		default:
			out.WriteByte('$')
		}
	}
	return out.String()
}

func secrets(t testing.TB, dir string) (token, document string) {
	t.Helper()
	token, document = filepath.Join(dir, "token"), filepath.Join(dir, "xds-root.yaml")
	write := func(file, text string) {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(token, "token")
	write(document, `resources:
- "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret
  name: xds-ca
  validation_context: {trusted_ca: {inline_string: ""}}
`)
	return token, document
}

// A name that the resolver tries in the pod's search domains costs each start of a pod a few questions more.
func TestTheControlPlaneIsAskedForByItsWholeName(t *testing.T) {
	for address, want := range map[string]string{
		"istiod.istio-system.svc:15012":               "istiod.istio-system.svc.cluster.local.",
		"istiod.istio-system.svc.cluster.local:15012": "istiod.istio-system.svc.cluster.local.",
		"mesh.example.com:15012":                      "mesh.example.com",
		"192.0.2.1:15012":                             "192.0.2.1",
	} {
		template, err := New(Settings{DiscoveryAddress: address})
		if err != nil {
			t.Fatal(err)
		}
		text, err := template.Build(Params{Kind: Sidecar, App: "a"})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, `"address":"`+want+`","port_value":15012`) {
			t.Errorf("%s: the bootstrap does not ask for %q: %s", address, want, text)
		}
	}
}
