package main

import (
	"bytes"
	"testing"

	"github.com/weft-mesh/weft/deploy"
)

func TestMadeFilesAreUpToDate(t *testing.T) {
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		got, err := deploy.Charts.ReadFile(path)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s is stale: run go generate ./deploy", path)
		}
	}
}
