package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Data: map[string]string{"k": value}}
}

func TestWhatIsStoredIsACopyWithIdentityAndVersions(t *testing.T) {
	s := New()
	mine := configMap("a", "1")
	made, err := s.Create(mine)
	if err != nil {
		t.Fatal(err)
	}
	mine.Data["k"] = "changed by the caller"
	got := Get[*corev1.ConfigMap](s, "configmaps", "default", "a")
	if got.Data["k"] != "1" || got.UID == "" || got.ResourceVersion == "" || got.CreationTimestamp.IsZero() || got.Kind != "ConfigMap" {
		t.Errorf("stored %+v", got)
	}
	if _, err := s.Create(configMap("a", "2")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating it again: %v, want AlreadyExists", err)
	}
	same, err := s.Update(KeyOf(made), func(Object) error { return nil })
	if err != nil || same.GetResourceVersion() != made.GetResourceVersion() {
		t.Errorf("an update that changes nothing made version %s of %s (%v)", same.GetResourceVersion(), made.GetResourceVersion(), err)
	}
	if _, err := s.Update(Key{"configmaps", "default", "b"}, func(Object) error { return nil }); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `configmaps "b" not found`) {
		t.Errorf("updating what is not there: %v", err)
	}
}

func TestGenerationCountsChangesOfTheSpecOnly(t *testing.T) {
	s := New()
	d, err := s.Create(&appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}})
	if err != nil {
		t.Fatal(err)
	}
	step := func(want int64, change func(*appsv1.Deployment)) {
		t.Helper()
		o, err := s.Update(KeyOf(d), func(o Object) error { change(o.(*appsv1.Deployment)); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if o.GetGeneration() != want {
			t.Errorf("generation %d, want %d", o.GetGeneration(), want)
		}
	}
	step(1, func(d *appsv1.Deployment) { d.Status.Replicas = 3 })
	step(1, func(d *appsv1.Deployment) { d.Labels = map[string]string{"a": "b"} })
	step(2, func(d *appsv1.Deployment) { n := int32(3); d.Spec.Replicas = &n })
}

func TestAWatchBeginsWithWhatExistsAndSeesEveryChangeInOrder(t *testing.T) {
	s := New()
	if _, err := s.Create(configMap("before", "1")); err != nil {
		t.Fatal(err)
	}
	w := s.Watch(func(e Event) bool { return e.Key.Resource == "configmaps" })
	defer w.Stop()
	if _, err := s.Create(configMap("after", "1")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "not-asked-for"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if _, err := s.Update(Key{"configmaps", "default", "after"}, func(o Object) error {
			o.(*corev1.ConfigMap).Data["k"] = strings.Repeat("x", i+2)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	s.Remove(Key{"configmaps", "default", "before"})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	var got []string
	length := 1
	for len(got) < 53 {
		batch, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("after %d events: %v", len(got), err)
		}
		for _, e := range batch {
			got = append(got, string(e.Type)+" "+e.Key.Name)
			if e.Type == Modified {
				length++
				if n := len(e.Object.(*corev1.ConfigMap).Data["k"]); n != length {
					t.Fatalf("change %d came out of order (length %d)", length, n)
				}
			}
		}
	}
	if got[0] != "ADDED before" || got[1] != "ADDED after" || got[2] != "MODIFIED after" || got[52] != "DELETED before" {
		t.Errorf("events %v", got)
	}
}

func TestEveryShortNameLeadsToItsKind(t *testing.T) {
	for word, want := range map[string]string{
		"po": "Pod", "svc": "Service", "deploy": "Deployment", "sts": "StatefulSet", "ds": "DaemonSet", "vs": "VirtualService",
		"dr": "DestinationRule", "gw": "Gateway", "pa": "PeerAuthentication", "ns": "Namespace", "cm": "ConfigMap", "sa": "ServiceAccount",
		"ep": "EndpointSlice", "Pods": "Pod", "deployments.apps": "Deployment", "deployment.v1.apps": "Deployment", "vs.networking.istio.io": "VirtualService",
	} {
		k, ok := Resource(word)
		if !ok || k.Kind != want {
			t.Errorf("%s is %v, want %s", word, k, want)
		}
	}
	if _, ok := Resource("widgets"); ok {
		t.Error("widgets are known")
	}
}

func TestTheMirrorFollowsWithOneFileForEachObject(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "left_over_x.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := New()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	m := &Mirror{Dir: dir, Want: func(o Object) bool { return o.GetName() != "private" }, Quiet: time.Millisecond}
	go func() { done <- m.Run(ctx, s) }()
	for _, n := range []string{"a", "b", "private"} {
		if _, err := s.Create(configMap(n, "1")); err != nil {
			t.Fatal(err)
		}
	}
	names := func() string {
		var out []string
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, e.Name())
		}
		return strings.Join(out, " ")
	}
	await(t, func() bool { return names() == "configmaps_default_a.json configmaps_default_b.json" }, names)
	s.Remove(Key{"configmaps", "default", "a"})
	await(t, func() bool { return names() == "configmaps_default_b.json" }, names)
	if _, err := s.Update(Key{"configmaps", "default", "b"}, func(o Object) error { o.(*corev1.ConfigMap).Data["k"] = "2"; return nil }); err != nil {
		t.Fatal(err)
	}
	content := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "configmaps_default_b.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	await(t, func() bool { return strings.Contains(content(), `"k": "2"`) }, content)
	if !strings.Contains(content(), `"kind": "ConfigMap"`) {
		t.Errorf("the file does not say what it is: %s", content())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func await(t *testing.T, ok func() bool, state func() string) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it stays: %s", state())
		}
		<-time.After(2 * time.Millisecond)
	}
}
