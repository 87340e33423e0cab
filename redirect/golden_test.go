package redirect

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files in testdata")

// specs are the Specs of testdata, by folder name.
func specs(t *testing.T) map[string]Spec {
	t.Helper()
	files, err := filepath.Glob("testdata/*/in.json")
	if err != nil || len(files) < 25 {
		t.Fatalf("found %d specs in testdata (%v), want at least 25", len(files), err)
	}
	out := map[string]Spec{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Decode(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[filepath.Base(filepath.Dir(f))] = s
	}
	return out
}

func TestARedirectSpecBecomesTheseRules(t *testing.T) {
	for name, s := range specs(t) {
		t.Run(name, func(t *testing.T) {
			for _, b := range []Backend{nft{}, newIPTables()} {
				text, err := b.Text(s)
				if err != nil {
					t.Fatal(err)
				}
				golden(t, filepath.Join("testdata", name, b.Name()+".txt"), text)
			}
		})
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got); if that is meant, run go test -update:\n%s", file, d)
	}
}
