package webhook

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/envoy/bootstrap"
)

// Whatever a user asks for, the command line that kubelet will run must be one that Envoy starts with.
func TestEnvoyTakesEveryInjectedCommandLine(t *testing.T) {
	envoy := kit.Envoy(t)
	in := newInjector(t, Options{Templates: map[string][]byte{"team": []byte(teamTemplate)}})
	files, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"istio-token":           "token",
		"xds-root.yaml":         "resources:\n- \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret\n  name: xds-ca\n  validation_context: {trusted_ca: {inline_string: \"\"}}\n",
		"custom_bootstrap.json": `{"tracing": {"http": {"name": "envoy.tracers.zipkin", "typed_config": {"@type": "type.googleapis.com/envoy.config.trace.v3.ZipkinConfig", "collector_cluster": "xds-grpc", "collector_endpoint": "/zipkin/api/v1/spans", "collector_endpoint_version": "HTTP_JSON"}}}}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	here := strings.NewReplacer("/var/run/secrets/tokens", dir, "/var/run/secrets/istio", dir, customBootstrapDir, dir)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ReadManifest(file, text)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range m.Workloads {
			if !in.DecideEnabled(w.Pod, "default").Inject {
				continue
			}
			if _, err := m.Inject(in, w, "default", nil); err != nil {
				continue // what is denied, and how, is in the golden
			}
			c := findProxy(w.Pod)
			if c == nil || len(c.Args) > 0 && c.Args[0] == "--my" {
				continue
			}
			t.Run(w.Name, func(t *testing.T) {
				t.Parallel()
				args := []string{"--mode", "validate"}
				for _, a := range c.Args {
					args = append(args, expand(here.Replace(a), c.Env))
				}
				if out, err := exec.Command(envoy, args...).CombinedOutput(); err != nil {
					t.Errorf("%v\n%.2000s", err, out)
				}
			})
		}
	}
}

// expand is kubelet's $(VAR) for the variables that the bootstrap uses.
func expand(arg string, env []corev1.EnvVar) string {
	pairs := []string{"$$", "$"}
	for _, e := range env {
		value := e.Value
		switch e.Name {
		case bootstrap.EnvPodIP, bootstrap.EnvInstanceIPs:
			value = "10.0.0.1"
		case bootstrap.EnvPodName, bootstrap.EnvPodNamespace, bootstrap.EnvServiceAccount, bootstrap.EnvNodeName:
			value = "x"
		}
		pairs = append(pairs, "$("+e.Name+")", value)
	}
	return strings.NewReplacer(pairs...).Replace(arg)
}
