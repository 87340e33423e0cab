package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestVariablesAreExpandedAsKubeletDoes(t *testing.T) {
	n := newNode(t, nil)
	n.setConfigMap("settings", map[string]string{"COLOUR": "green", "SIZE": "9"})
	n.setSecret("key", map[string][]byte{"password": []byte("s3cret")})
	pod := n.start(`
metadata: {name: web, labels: {app: shop}, annotations: {note: hi}}
spec:
  serviceAccountName: clerk
  containers:
  - name: app
    image: sh
    command: [sh]
    args: [-c, 'echo "$0 $1"; exec sleep 1000', "$(COLOUR) $$(COLOUR) $(NOPE)", "$(IP)"]
    workingDir: /scratch/dir
    resources: {limits: {cpu: 500m}, requests: {memory: 1Mi}}
    envFrom:
    - configMapRef: {name: settings}
    - {prefix: KEY_, secretRef: {name: key}}
    - configMapRef: {name: absent, optional: true}
    env:
    - {name: SIZE, value: "10"}
    - {name: BOTH, value: "$(COLOUR)-$(SIZE)-$(LATER)-$$(SIZE)-$"}
    - {name: LATER, value: x}
    - {name: EMPTY}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
    - {name: UID_, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MILLI, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: requests.memory}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: key, key: password}}}
    - {name: SETTING, valueFrom: {configMapKeyRef: {name: settings, key: SIZE}}}
    - {name: ABSENT, valueFrom: {configMapKeyRef: {name: settings, key: NONE, optional: true}}}
`)
	s := n.until(pod, "ready", ready)
	n.untilLog(pod, "app", "green $(COLOUR) $(NOPE) "+s.PodIP+"\n")
	env := map[string]string{}
	for line := range strings.Lines(n.sh(pod, "app", "env")) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		env[name] = value
	}
	for name, want := range map[string]string{
		"COLOUR": "green", "SIZE": "10", "KEY_password": "s3cret", "BOTH": "green-10-$(LATER)-$(SIZE)-$", "LATER": "x", "EMPTY": "",
		"IP": s.PodIP, "IPS": s.PodIPs[0].IP + "," + s.PodIPs[1].IP, "HOST": "10.0.0.1", "NODE": "node-1", "SA": "clerk", "NAME": "web", "NS": "default",
		"UID_": "uid-web", "LABEL": "shop", "NOTE": "hi", "CPU": "1", "MILLI": "500", "MEM": "1048576", "PASSWORD": "s3cret", "SETTING": "9",
		"HOSTNAME": "web", "PATH": defaultPath, "PWD": "/scratch/dir",
	} {
		equal(t, name, env[name], want)
	}
	if v, ok := env["ABSENT"]; ok {
		t.Errorf("ABSENT is set: %q", v)
	}
}

func TestMissingKeyHoldsTheContainer(t *testing.T) {
	n := newNode(t, nil)
	n.setConfigMap("settings", map[string]string{"a": "1"})
	pod := n.start(`
spec:
  containers:
  - {name: app, image: sh, args: [-c, "sleep 1000"], env: [{name: X, valueFrom: {configMapKeyRef: {name: settings, key: b}}}]}
`)
	s := n.until(pod, "refusal", func(s corev1.PodStatus) bool {
		return len(s.ContainerStatuses) > 0 && s.ContainerStatuses[0].State.Waiting != nil && s.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	equal(t, "message", s.ContainerStatuses[0].State.Waiting.Message, "env X: couldn't find key b in ConfigMap default/settings")
	n.setConfigMap("settings", map[string]string{"b": "2"})
	s = n.until(pod, "ready", ready)
	equal(t, "restarts", s.ContainerStatuses[0].RestartCount, 0)
}

func TestExpand(t *testing.T) {
	vars := environment{"A": "1", "B": "$(A)", "EMPTY": ""}
	for in, want := range map[string]string{
		"":           "",
		"plain":      "plain",
		"$(A)":       "1",
		"x$(A)y":     "x1y",
		"$(B)":       "$(A)",
		"$(EMPTY)":   "",
		"$(NONE)":    "$(NONE)",
		"$$(A)":      "$(A)",
		"$$$(A)":     "$1",
		"$$$$(A)":    "$$(A)",
		"$$(NONE)":   "$(NONE)",
		"$A":         "$A",
		"$":          "$",
		"$$":         "$",
		"a$":         "a$",
		"$(A":        "$(A",
		"$(A$(A)":    "$(A$(A)",
		"$()":        "$()",
		"$(A)$(A)":   "11",
		"%REQ($(A))": "%REQ(1)",
	} {
		if got := expand(in, vars.lookup); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$(A)", "$$(A)", "$(", "$$", "a$(B)$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// What has no variable in it comes out as kubelet has it: only "$$" is shortened.
		none := expand(s, func(string) (string, bool) { return "", false })
		if strings.ReplaceAll(none, "$", "") != strings.ReplaceAll(s, "$", "") {
			t.Errorf("expand(%q) = %q", s, none)
		}
	})
}

func TestImageIsMappedByTheMostExactKey(t *testing.T) {
	images := map[string]string{
		"envoyproxy/envoy":               "/any",
		"envoyproxy/envoy:special":       "/special",
		"docker.io/envoyproxy/*":         "/family",
		"nginx":                          "/nginx",
		"ghcr.io/x/y@sha256:0123":        "/digest",
		"localhost:5000/team/app":        "/local",
		"docker.io/istio/examples-book*": "/book",
	}
	for image, want := range map[string]string{
		"docker.io/envoyproxy/envoy:distroless-v1.40.0": "/any",
		"envoyproxy/envoy":                  "/any",
		"envoyproxy/envoy:special":          "/special",
		"docker.io/envoyproxy/ratelimit:1":  "/family",
		"nginx:1.27":                        "/nginx",
		"docker.io/nginx":                   "/nginx",
		"docker.io/library/nginx@sha256:ff": "/nginx",
		"ghcr.io/x/y@sha256:0123":           "/digest",
		"ghcr.io/x/y:1":                     "",
		"localhost:5000/team/app:2":         "/local",
		"docker.io/istio/examples-bookinfo-productpage-v1:1.20.2": "/book",
		"": "",
	} {
		got, ok := mapped(images, image)
		if got != want || ok != (want != "") {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
}
