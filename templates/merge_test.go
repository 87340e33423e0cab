package templates

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"sort"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	sigsyaml "sigs.k8s.io/yaml"
)

func podOf(t testing.TB, text string) *corev1.Pod {
	t.Helper()
	pod := new(corev1.Pod)
	if err := sigsyaml.UnmarshalStrict([]byte(text), pod); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return pod
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// library is what Kubernetes does with the same two objects.
func library(t testing.TB, pod, overlay *corev1.Pod) *corev1.Pod {
	t.Helper()
	// A typed object always has these two, as null and {}; in a patch null would mean "remove".
	var patch map[string]any
	if err := json.Unmarshal(marshal(t, overlay), &patch); err != nil {
		t.Fatal(err)
	}
	dropNulls(patch)
	merged, err := strategicpatch.StrategicMergePatch(marshal(t, pod), marshal(t, patch), corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	out := new(corev1.Pod)
	if err := json.Unmarshal(merged, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			if x == nil {
				delete(v, k)
			}
			dropNulls(x)
		}
	case []any:
		for _, x := range v {
			dropNulls(x)
		}
	}
}

// parts are pieces of pods that overlap in names, so that merging has something to do.
var parts = []string{
	`metadata: {labels: {a: "1", b: "2"}, annotations: {x: "1"}}`,
	`metadata: {labels: {b: "3"}, annotations: {y: "2"}, finalizers: [f1, f2]}`,
	`metadata: {finalizers: [f2, f3], ownerReferences: [{apiVersion: v1, kind: X, name: n, uid: u}]}`,
	`spec: {containers: [{name: a, image: i1, env: [{name: A, value: "1"}, {name: B, value: "2"}]}]}`,
	`spec: {containers: [{name: a, args: [x], env: [{name: B, value: "3"}, {name: C, value: "4"}]}, {name: b, image: i2}]}`,
	`spec: {containers: [{name: b, ports: [{containerPort: 80, name: http}], volumeMounts: [{name: v, mountPath: /v}]}]}`,
	`spec: {containers: [{name: b, ports: [{containerPort: 80, protocol: UDP}, {containerPort: 81}], volumeMounts: [{name: w, mountPath: /v}, {name: x, mountPath: /x}]}]}`,
	`spec: {containers: [{name: a, resources: {limits: {cpu: "1"}}, securityContext: {runAsUser: 1, capabilities: {add: [A, B]}}}]}`,
	`spec: {containers: [{name: a, resources: {limits: {memory: 1Gi}, requests: {cpu: 10m}}, securityContext: {runAsGroup: 2, capabilities: {add: [C], drop: [ALL]}}}]}`,
	`spec: {initContainers: [{name: i, image: i1, restartPolicy: Always}], volumes: [{name: v, emptyDir: {medium: Memory}}]}`,
	`spec: {initContainers: [{name: j, image: i1}, {name: i, command: [c]}], volumes: [{name: w, secret: {secretName: s}}, {name: v, emptyDir: {sizeLimit: 1Gi}}]}`,
	`spec: {imagePullSecrets: [{name: p}], hostAliases: [{ip: 1.1.1.1, hostnames: [h]}], tolerations: [{key: k}]}`,
	`spec: {imagePullSecrets: [{name: q}, {name: p}], hostAliases: [{ip: 1.1.1.1, hostnames: [g]}, {ip: 2.2.2.2}], tolerations: [{key: l}]}`,
	`spec: {nodeSelector: {n: "1"}, terminationGracePeriodSeconds: 5, securityContext: {fsGroup: 1, sysctls: [{name: s, value: "1"}]}, hostname: h}`,
	`spec: {nodeSelector: {n: "2", m: "3"}, terminationGracePeriodSeconds: 0, securityContext: {runAsNonRoot: true, sysctls: [{name: r, value: "2"}]}, automountServiceAccountToken: false}`,
	`spec: {containers: [{name: a, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 3}}], topologySpreadConstraints: [{topologyKey: z, maxSkew: 1}]}`,
	`spec: {containers: [{name: a, readinessProbe: {httpGet: {path: /x, port: http}, timeoutSeconds: 4}, lifecycle: {preStop: {exec: {command: [x]}}}}], affinity: {nodeAffinity: {}}}`,
}

// random builds a pod out of some parts, by the library, so that our merge has no say in it.
func random(t testing.TB, r *rand.Rand) *corev1.Pod {
	pod := new(corev1.Pod)
	for range 1 + r.IntN(5) {
		pod = library(t, pod, podOf(t, parts[r.IntN(len(parts))]))
	}
	return pod
}

// sortLists orders merged lists: where new elements go is our own choice.
func sortLists(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			sortLists(v.Elem())
		}
	case reflect.Struct:
		if IsScalar(v.Type()) {
			return
		}
		for _, f := range Fields(v.Type()) {
			x := v.FieldByIndex(f.Index)
			sortLists(x)
			if f.Merge && x.Kind() == reflect.Slice {
				sort.SliceStable(x.Interface(), func(i, j int) bool {
					return fmt.Sprintf("%v", x.Index(i)) < fmt.Sprintf("%v", x.Index(j))
				})
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			sortLists(v.Index(i))
		}
	}
}

func TestMergeIsAStrategicMergePatch(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		pod, overlay := random(t, r), random(t, r)
		want := library(t, pod, overlay)
		got := pod.DeepCopy()
		Merge(got, overlay.DeepCopy())
		sortLists(reflect.ValueOf(want).Elem())
		sortLists(reflect.ValueOf(got).Elem())
		if a, b := marshal(t, want), marshal(t, got); string(a) != string(b) {
			t.Fatalf("pod %s\noverlay %s\ndiffers from Kubernetes' merge:\n%s", marshal(t, pod), marshal(t, overlay), cmp.Diff(want, got))
		}
	}
}

func TestOnlyOneMemberOfAUnionRemains(t *testing.T) {
	for name, c := range map[string]struct{ pod, overlay, want string }{
		"probe": {
			`spec: {containers: [{name: a, readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 3}}]}`,
			`spec: {containers: [{name: a, readinessProbe: {exec: {command: [x]}}}]}`,
			`spec: {containers: [{name: a, readinessProbe: {exec: {command: [x]}, periodSeconds: 3}}]}`,
		},
		"hook": {
			`spec: {containers: [{name: a, lifecycle: {preStop: {exec: {command: [x]}}}}]}`,
			`spec: {containers: [{name: a, lifecycle: {preStop: {sleep: {seconds: 1}}}}]}`,
			`spec: {containers: [{name: a, lifecycle: {preStop: {sleep: {seconds: 1}}}}]}`,
		},
		"volume": {
			`spec: {volumes: [{name: v, emptyDir: {}}]}`,
			`spec: {volumes: [{name: v, secret: {secretName: s}}]}`,
			`spec: {volumes: [{name: v, secret: {secretName: s}}]}`,
		},
		"variable": {
			`spec: {containers: [{name: a, env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: B, value: x}]}]}`,
			`spec: {containers: [{name: a, env: [{name: A, value: y}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}`,
			`spec: {containers: [{name: a, env: [{name: A, value: y}, {name: B, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}`,
		},
		"source of a variable": {
			`spec: {containers: [{name: a, env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]}]}`,
			`spec: {containers: [{name: a, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}`,
			`spec: {containers: [{name: a, env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := podOf(t, c.pod)
			Merge(pod, podOf(t, c.overlay))
			if d := cmp.Diff(podOf(t, c.want), pod); d != "" {
				t.Error(d)
			}
		})
	}
}
