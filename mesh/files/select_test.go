package files

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weft-mesh/weft/mesh"
)

func TestOnlySelectedNamespacesAreInTheMesh(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		tmp := filepath.Join(dir, "."+name)
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	namespace := func(name, labels string) string {
		return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + ", labels: {" + labels + "}}\n---\n"
	}
	service := func(ns string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: " + ns + "}\nspec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}\n---\n"
	}
	config := func(mesh string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: '" + mesh + "'}\n"
	}
	put("a.yaml", namespace("in", "mesh: yes-please")+service("in"))
	put("b.yaml", namespace("out", "")+service("out"))
	put("mesh.yaml", config("discoverySelectors: [{matchLabels: {mesh: yes-please}}]"))
	changes, err := Watch(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	store := mesh.NewStore(mesh.Options{})
	feed := NewFeed(store)
	errs := make(chan error, 1)
	go func() {
		for c := range changes {
			if err := feed.Give(c); err != nil {
				errs <- err
			}
		}
	}()
	await := func(want ...string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			got = nil
			for s := range store.Snapshot().Services("in") {
				got = append(got, s.Namespace)
			}
			if slices.Equal(got, want) {
				return
			}
		}
		t.Fatalf("services of %q, want %q", got, want)
	}
	await("in")
	put("b.yaml", namespace("out", "mesh: yes-please")+service("out"))
	await("in", "out")
	put("a.yaml", namespace("in", "")+service("in"))
	await("out")
	put("mesh.yaml", config("{}"))
	await("in", "out")
	put("mesh.yaml", config("discoverySelectors: [{matchLabels: {mesh: never}}]"))
	await()
	if err := os.Remove(filepath.Join(dir, "mesh.yaml")); err != nil {
		t.Fatal(err)
	}
	await("in", "out")
	select {
	case err := <-errs:
		t.Error(err)
	default:
	}
}
