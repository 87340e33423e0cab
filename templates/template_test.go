package templates

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func known(string) bool { return true }

func TestLeavesTakeTheTypeOfTheirValue(t *testing.T) {
	tpl, err := Parse("t", []byte(`
metadata:
  labels: {a: "${text}", b: "x-${number}-y", c: "${missing}", d: "x${missing}", e: "$${text}", f: "${labels[app]}", g: "${annotations[none]:-default}"}
spec:
  $unless: ${missing}
  hostname: ${text}
  terminationGracePeriodSeconds: ${number}
  automountServiceAccountToken: ${flag}
  volumes:
  - {name: v, emptyDir: {}}
  containers:
  - name: a
    args: [first, "${list}", "${missing}", last]
    resources: {limits: {cpu: "${cpu}", memory: "${missing}"}}
    readinessProbe: {httpGet: {port: "${number}"}}
    livenessProbe: {httpGet: {port: "${text}"}}
    env:
    - ${env}
    - {$if: "${missing}", name: NEVER}
    - {$if: "${flag}", name: ALWAYS, value: "true"}
    securityContext: {runAsUser: "${missing}"}
    command: ["${missing}"]
    stdin: true
    workingDir: "$(POD_IP)"
`), known)
	if err != nil {
		t.Fatal(err)
	}
	v := &Values{Labels: map[string]string{"app": "web"}, Named: map[string]any{
		"text": "word", "number": int32(7), "flag": true, "cpu": "100m", "list": []string{"one", "two"}, "empty": "",
		"env": []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
	}}
	got, err := tpl.Build(v)
	if err != nil {
		t.Fatal(err)
	}
	want := podOf(t, `
metadata:
  labels: {a: word, b: x-7-y, e: "${text}", f: web, g: default}
spec:
  hostname: word
  terminationGracePeriodSeconds: 7
  automountServiceAccountToken: true
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: a
    args: [first, one, two, last]
    resources: {limits: {cpu: 100m}}
    readinessProbe: {httpGet: {port: 7}}
    livenessProbe: {httpGet: {port: word}}
    env: [{name: A, value: "1"}, {name: B, value: "2"}, {name: ALWAYS, value: "true"}]
    stdin: true
    workingDir: $(POD_IP)
`)
	equalQuantities := cmp.Comparer(func(a, b resource.Quantity) bool { return a.Cmp(b) == 0 })
	if d := cmp.Diff(want, got, equalQuantities); d != "" {
		t.Error(d)
	}
	// What is built is the caller's to change.
	got.Spec.Containers[0].Args[0] = "changed"
	got.Spec.Volumes[0].EmptyDir.Medium = "changed"
	again, err := tpl.Build(v)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, again, equalQuantities); d != "" {
		t.Errorf("a change of what was built changed the template:\n%s", d)
	}
}

func TestATextNeverBecomesAField(t *testing.T) {
	tpl, err := Parse("t", []byte("spec:\n  hostname: ${x}\n  containers:\n  - ${x}\n"), known)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"a\n  hostNetwork: true", "{name: evil}", "${x}", `"}`} {
		if pod, err := tpl.Build(&Values{Named: map[string]any{"x": text}}); err == nil {
			t.Errorf("%q became a container: %+v", text, pod.Spec)
		}
	}
}

func TestAMistakeInATemplateIsFoundWhenItIsLoaded(t *testing.T) {
	for text, want := range map[string]string{
		"spec:\n  hostNetwrk: true\n":        `line 2: spec: PodSpec has no field "hostNetwrk"`,
		"spec:\n  containers:\n  - nam: x\n": `line 3: spec.containers[0]: Container has no field "nam"`,
		"spec: {hostNetwork: \"yes\"}":       `spec.hostNetwork: "yes" where a bool is wanted`,
		"spec: {containers: {name: x}}":      "spec.containers: want a list of Container",
		"spec: []":                           "spec: want a PodSpec",
		"spec: {hostname: \"${no\"}":         "without }",
		"spec: {hostname: \"${labels[x}\"}":  "want ${labels[key]}",
		"spec: {$if: yes, hostname: x}":      "$if wants an expression",
		"spec: {hostname: a, hostname: b}":   "twice",
		"spec: {containers: [{name: a, ports: [{containerPort: 99999999999}]}]}": "containerPort",
		"":                    "no document",
		"a: [b":               "line 1",
		"kind: Pod\nxyz: 1\n": `Pod has no field "xyz"`,
	} {
		_, err := Parse("mine", []byte(text), known)
		if err == nil {
			t.Errorf("%q: accepted", text)
		} else if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "template mine") {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestAValueOfTheWrongTypeIsAnErrorThatNamesFieldAndExpression(t *testing.T) {
	tpl, err := Parse("mine", []byte("spec:\n  containers:\n  - name: a\n    resources: {limits: {cpu: \"${annotations[cpu]}\"}}\n"), known)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpl.Build(&Values{Annotations: map[string]string{"cpu": "lots"}})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"template mine", "spec.containers[0].resources.limits[cpu]", "${cpu}", `"lots" is not a quantity`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not say %q", err, want)
		}
	}
}
