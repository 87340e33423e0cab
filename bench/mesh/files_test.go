package mesh

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-mesh/weft/mesh/files"
	corev1 "k8s.io/api/core/v1"
)

// podFiles writes one file per pod, as the sandbox does.
func podFiles(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	for i := range services {
		for j := range endpoints {
			replacePod(b, dir, pod(i, j, "v1"))
		}
	}
	return dir
}

func replacePod(b *testing.B, dir string, p *corev1.Pod) {
	b.Helper()
	p.APIVersion, p.Kind = "v1", "Pod"
	text, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(dir, fmt.Sprintf("pod-%s-%s.json", p.Namespace, p.Name))
	if err := os.WriteFile(path+".tmp", text, 0o644); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkFilesFirstRead(b *testing.B) {
	dir := podFiles(b)
	b.ReportAllocs()
	for b.Loop() {
		changes, err := files.Watch(b.Context(), dir)
		if err != nil {
			b.Fatal(err)
		}
		if c := <-changes; len(c.Apply) != services*endpoints {
			b.Fatalf("%d objects, errors %v", len(c.Apply), c.Errors)
		}
	}
}

// The time from the rename until the change is there: 10 ms of it is the wait for the writer to be done.
func BenchmarkFilesOneChange(b *testing.B) {
	dir := podFiles(b)
	changes, err := files.Watch(b.Context(), dir)
	if err != nil {
		b.Fatal(err)
	}
	<-changes
	b.ReportAllocs()
	odd := false
	for b.Loop() {
		odd = !odd
		replacePod(b, dir, pod(500, 1, fmt.Sprint(odd)))
		if c := <-changes; len(c.Apply) != 1 {
			b.Fatalf("%d objects, errors %v", len(c.Apply), c.Errors)
		}
	}
}
