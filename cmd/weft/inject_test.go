package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// weft runs the command line as main does.
func weft(t *testing.T, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := newWeft()
	cmd.SetArgs(args)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const service = `# a comment
apiVersion: v1
kind: Service
metadata: {name:   web}   # odd   spacing
spec: {ports: [{port: 80}]}
`

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  # how many
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "web:1"}]}
`

func TestKubeInjectKeepsWhatItDoesNotInjectByteForByte(t *testing.T) {
	out, errs, err := weft(t, service+"---\n"+deployment+"---\n"+service, "kube-inject", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out, service+"---\n") || !strings.HasSuffix(out, "---\n"+service) {
		t.Errorf("the services changed:\n%s", out)
	}
	for _, want := range []string{"name: istio-proxy", "restartPolicy: Always", "# how many", "weft.dev/redirect"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if errs != "" {
		t.Errorf("unexpected words: %s", errs)
	}
	again, _, err := weft(t, out, "kube-inject", "-f", "-")
	if err != nil {
		t.Fatal(err)
	}
	if again != out {
		t.Error("injecting the result changes it")
	}
}

func TestKubeInjectSaysWhatItLeftOutAndWhy(t *testing.T) {
	pod := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: kube-system}\nspec: {containers: [{name: a, image: a}]}\n"
	path := file(t, "pod.yaml", pod)
	out, errs, err := weft(t, "", "kube-inject", "-f", path)
	if err != nil {
		t.Fatal(err)
	}
	if out != pod {
		t.Errorf("changed:\n%s", out)
	}
	if !strings.Contains(errs, "Pod kube-system/p ("+path+":1): not injected: namespace kube-system is never injected") {
		t.Errorf("said %q", errs)
	}
}

func TestKubeInjectNamesFileAndLineOfWhatItCannotRead(t *testing.T) {
	path := file(t, "broken.yaml", service+"---\nkind: Deployment\nspec: {template: [}\n")
	_, _, err := weft(t, "", "kube-inject", "-f", path)
	if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "line 8") {
		t.Errorf("got %v", err)
	}
	path = file(t, "joined.yaml", service+deployment)
	if _, _, err := weft(t, "", "kube-inject", "-f", path); err == nil || !strings.Contains(err.Error(), path+`:6: the key "apiVersion" is here a second time; is a line "---" missing before it?`) {
		t.Errorf("two objects in one document: %v", err)
	}
	if _, _, err := weft(t, "", "check-inject", "-f", file(t, "service.yaml", service)); err == nil || !strings.Contains(err.Error(), "no pods and no pod templates") {
		t.Errorf("a file without pods: %v", err)
	}
	if _, _, err := weft(t, "", "kube-inject"); err == nil || !strings.Contains(err.Error(), "-f") {
		t.Errorf("no file: %v", err)
	}
	if _, _, err := weft(t, "", "kube-inject", "-f", "no-such-file.yaml"); err == nil || !strings.Contains(err.Error(), "no-such-file.yaml") {
		t.Errorf("no such file: %v", err)
	}
	path = file(t, "denied.yaml", strings.Replace(deployment, "labels:", "annotations: {sidecar.istio.io/proxyCPU: lots}, labels:", 1))
	if _, _, err := weft(t, "", "kube-inject", "-f", path); err == nil || !strings.Contains(err.Error(), `Deployment web (`+path+`:1): annotation sidecar.istio.io/proxyCPU: value "lots"`) {
		t.Errorf("denied: %v", err)
	}
}

func TestKubeInjectTakesMeshConfigRevisionAndTemplates(t *testing.T) {
	mesh := file(t, "mesh.yaml", "defaultConfig: {concurrency: 7, discoveryAddress: istiod-canary.istio-system.svc:15012}\n")
	own := file(t, "own.yaml", "spec: {priorityClassName: mine}\n")
	annotated := strings.Replace(deployment, "labels:", `annotations: {inject.istio.io/templates: "sidecar,own"}, labels:`, 1)
	out, _, err := weft(t, annotated, "kube-inject", "-f", "-", "--meshConfigFile", mesh, "--revision", "canary", "--template", "own="+own, "--proxy-image", "example.com/envoy:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`- "7"`, "istiod-canary", "istio.io/rev: canary", "priorityClassName: mine", "image: example.com/envoy:1"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q", want)
		}
	}
}

func TestCheckInjectSaysWhoGetsAProxyAndWhy(t *testing.T) {
	files := file(t, "ns.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio-injection: enabled}}\n---\n"+
		strings.Replace(deployment, "{name: web}", "{name: web, namespace: shop}", 1)+"---\n"+
		strings.Replace(deployment, "{name: web}", "{name: other}", 1)+"---\n"+
		strings.Replace(strings.Replace(deployment, "{name: web}", "{name: bad, namespace: shop}", 1), "labels:", "annotations: {sidecar.istio.io/logLevel: loud}, labels:", 1))
	out, _, err := weft(t, "", "check-inject", "-f", files)
	var status exitStatus
	if !errors.As(err, &status) || status != 1 {
		t.Errorf("%v, want status 1 for a pod that would be denied", err)
	}
	for _, want := range []string{
		"NAMESPACE", "deployment/web", "✔", "namespace label istio-injection=enabled",
		"deployment/other", "✘", "the namespace has no label istio-injection=enabled", "sidecar.istio.io/logLevel", "would be denied",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	out, _, err = weft(t, "", "check-inject", "-f", files, "-o", "json", "deployment/web")
	if err != nil {
		t.Fatal(err)
	}
	var rows []checkedPod
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 1 || !rows[0].Injected || rows[0].Reason != "NamespaceLabel" {
		t.Errorf("%v: %s", err, out)
	}
	dir, _, err := weft(t, "", "check-inject", "-f", filepath.Dir(files), "deployment/web")
	if err != nil || !strings.Contains(dir, "✔") {
		t.Errorf("a directory: %v\n%s", err, dir)
	}
	if _, _, err := weft(t, "", "check-inject", "-f", files, "nobody"); err == nil {
		t.Error("nobody was found")
	}
	if _, _, err := weft(t, "", "check-inject", "-f", files, "-o", "xml"); err == nil {
		t.Error("xml was printed")
	}
	out, _, err = weft(t, deployment, "check-inject", "-f", "-", "-o", "yaml", "--namespace-label", "istio-injection=enabled")
	if err != nil || !strings.Contains(out, "injected: true") {
		t.Errorf("%v:\n%s", err, out)
	}
}
