package webhook

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func newInjector(t testing.TB, o Options) *Injector {
	t.Helper()
	in, err := NewInjector(o)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// Each directory of testdata is one thing that users do: in.yaml, and out.yaml as kube-inject prints it.
func TestInjectionIsWhatTheGoldenSays(t *testing.T) {
	files, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	in := newInjector(t, Options{Templates: map[string][]byte{"team": []byte(teamTemplate)}})
	for _, file := range files {
		t.Run(filepath.Base(filepath.Dir(file)), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got, messages := injectFile(t, in, "in.yaml", text)
			want := filepath.Join(filepath.Dir(file), "out.yaml")
			if messages != "" {
				got = append(got, "# --- messages:\n# "+strings.ReplaceAll(strings.TrimSpace(messages), "\n", "\n# ")+"\n"...)
			}
			compare(t, want, got)
		})
	}
}

const teamTemplate = `
metadata:
  labels:
    team: ${labels[team]:-nobody}
spec:
  containers:
  - name: audit
    image: docker.io/example/audit:${annotations[example.com/audit]:-1}
`

// injectFile is kube-inject; it also checks what must hold for every pod.
func injectFile(t *testing.T, in *Injector, name string, text []byte) (out []byte, messages string) {
	t.Helper()
	m, err := ReadManifest(name, text)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range m.Workloads {
		d := in.DecideEnabled(w.Pod, w.Namespace)
		if !d.Inject {
			messages += w.String() + ": not injected: " + d.Message + "\n"
			continue
		}
		before := w.Pod.DeepCopy()
		warnings, err := m.Inject(in, w, "default", nil)
		if err != nil {
			messages += err.Error() + "\n"
			continue
		}
		for _, line := range warnings {
			messages += w.String() + ": " + line + "\n"
		}
		checkPatch(t, before, w.Pod)
		checkIdempotent(t, in, w)
	}
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	// What was written means what was injected.
	again, err := ReadManifest(name, b.Bytes())
	if err != nil {
		t.Fatalf("%v in\n%s", err, b.Bytes())
	}
	for i, w := range again.Workloads {
		if d := cmp.Diff(jsonOf(t, m.Workloads[i].Pod), jsonOf(t, w.Pod)); d != "" {
			t.Errorf("%s: the YAML that was written means something else:\n%s", w, d)
		}
	}
	return b.Bytes(), messages
}

// checkPatch: a JSON patch applied by somebody else's code gives the injected pod.
func checkPatch(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	patch, err := podPatch(before, after)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := decoded.Apply([]byte(jsonOf(t, before)))
	if err != nil {
		t.Fatalf("%v: %s", err, patch)
	}
	got := new(corev1.Pod)
	if err := json.Unmarshal(patched, got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(jsonOf(t, after), jsonOf(t, got)); d != "" {
		t.Errorf("the JSON patch gives another pod:\n%s", d)
	}
}

func checkIdempotent(t *testing.T, in *Injector, w *Workload) {
	t.Helper()
	again, _, err := in.injectAs(w.Pod, "default", nil, w.owner())
	if err != nil {
		t.Errorf("%s: the second call fails: %v", w, err)
		return
	}
	if d := cmp.Diff(jsonOf(t, w.Pod), jsonOf(t, again)); d != "" {
		t.Errorf("%s: the second call changes the pod:\n%s", w, d)
	}
	if patch, err := podPatch(w.Pod, again); err != nil || patch != nil {
		t.Errorf("%s: the second call's patch is %s, %v", w, patch, err)
	}
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func compare(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("differs from %s (run go test ./webhook -update and look at the difference):\n%s", file, d)
	}
}

func podOf(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	pod := new(corev1.Pod)
	if err := sigsyaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}
