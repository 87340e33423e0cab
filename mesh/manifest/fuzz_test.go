package manifest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever people feed to weft must end in objects or in an error that says where: never in a panic, never in both.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/mistakes/*[nl]")
	if err != nil {
		f.Fatal(err)
	}
	samples, err := filepath.Glob("../../samples/bookinfo/networking/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range append(files, samples...) {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		for _, doc := range bytes.Split(text, []byte("\n---\n")) {
			f.Add(doc)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		lines := 1
		for _, r := range string(text) {
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) { // what YAML takes for line breaks
				lines++
			}
		}
		objects, warnings, err := Decode(bytes.NewReader(text), "fuzz.yaml")
		if err != nil {
			if objects != nil {
				t.Fatal("objects beside an error")
			}
			list, ok := err.(Errors)
			if !ok || len(list) == 0 {
				t.Fatalf("%T is not Errors", err)
			}
			for _, e := range list {
				if e.Message == "" || e.Line < 0 || e.Line > lines {
					t.Fatalf("a mistake in line %d of %d: %q", e.Line, lines, e.Message)
				}
			}
			return
		}
		for _, o := range objects {
			if o.Object == nil || o.Line < 1 {
				t.Fatalf("object %v in line %d", o.Object, o.Line)
			}
		}
		for _, w := range warnings {
			_ = w.String()
		}
	})
}
