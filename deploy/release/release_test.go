package release

import "testing"

func TestTheImageTagIsTheReleaseOrDev(t *testing.T) {
	for version, want := range map[string]string{
		"v1.2.3":                               "1.2.3",
		"1.2.3":                                "1.2.3",
		"v1.2.3-rc.1":                          "1.2.3-rc.1",
		"(devel)":                              "dev",
		"":                                     "dev",
		"v1.2.3+dirty":                         "dev",
		"v1.2.4-0.20261121103000-0123456789ab": "dev",
		"v0.0.0-20261121103000-0123456789ab":   "dev",
		"v1.2.3-rc.1.0.20261121103000-0123456789ab+dirty": "dev",
	} {
		if got := tag(version); got != want {
			t.Errorf("%q: tag %q, want %q", version, got, want)
		}
	}
}
