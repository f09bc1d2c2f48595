package postgres_test

const writerURL = "PINNACE_EVENTLOG_TEST_POSTGRES"

func runWriter(string) int { return 0 }
