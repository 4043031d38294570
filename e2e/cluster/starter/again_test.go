package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func failing(failures int) (func() error, *int) {
	tries := 0
	return func() error {
		if tries++; tries <= failures {
			return errors.New("out of order")
		}
		return nil
	}, &tries
}

func TestWhatFailsForAMomentIsTriedAgain(t *testing.T) {
	for failures := range 3 {
		try, tries := failing(failures)
		if err := again(make([]time.Duration, 2), "it", try); err != nil || *tries != failures+1 {
			t.Errorf("%d failures: %d tries, %v", failures, *tries, err)
		}
	}
}

func TestWhatAlwaysFailsSaysHowOftenItWasTriedAndWhyItFailed(t *testing.T) {
	try, tries := failing(3)
	err := again(make([]time.Duration, 2), "fetching it", try)
	if *tries != 3 || err == nil || !strings.Contains(err.Error(), "fetching it failed 3 times") || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("%d tries: %v", *tries, err)
	}
}
