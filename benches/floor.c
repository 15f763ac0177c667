/* The least that taking a topic to a file can cost: librdkafka hands over batches, each value is copied once into a
 * buffer, and the buffer goes out in large writes. No transform, no order across partitions, no offsets, no sync. What
 * mtga needs beyond this is the price of everything that it promises.
 *
 *   floor BROKERS TOPIC PARTITIONS OUTPUT
 *
 * Reads every partition from its start to its end and prints how many values were written. scripts/bench builds it. */
#include <errno.h>
#include <fcntl.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER ((size_t)1 << 20)
#define BATCH 4096

static void fail(const char *what, const char *why) {
  fprintf(stderr, "floor: %s: %s\n", what, why);
  exit(1);
}

struct output {
  int file;
  size_t used;
  char buffer[BUFFER];
};

static void put_all(int file, const char *bytes, size_t length) {
  while (length > 0) {
    ssize_t done = write(file, bytes, length);
    if (done < 0) fail("cannot write the output", strerror(errno));
    bytes += done;
    length -= (size_t)done;
  }
}

static void flush(struct output *out) {
  put_all(out->file, out->buffer, out->used);
  out->used = 0;
}

static void put_line(struct output *out, const char *value, size_t length) {
  if (out->used + length + 1 > BUFFER) flush(out);
  if (length + 1 > BUFFER) { /* does not fit at all */
    put_all(out->file, value, length);
    length = 0;
  }
  memcpy(out->buffer + out->used, value, length);
  out->used += length;
  out->buffer[out->used++] = '\n';
}

static rd_kafka_t *consumer(const char *brokers) {
  const char *const settings[][2] = {
      {"bootstrap.servers", brokers},     {"group.id", "floor"},
      {"enable.auto.commit", "false"},    {"enable.partition.eof", "true"},
      {"fetch.message.max.bytes", "4194304"}, {"queued.max.messages.kbytes", "65536"},
  };
  char error[512];
  rd_kafka_conf_t *conf = rd_kafka_conf_new();
  for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
    if (rd_kafka_conf_set(conf, settings[i][0], settings[i][1], error, sizeof error) != RD_KAFKA_CONF_OK)
      fail(settings[i][0], error);
  rd_kafka_t *kafka = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);
  if (kafka == NULL) fail("cannot make a consumer", error);
  rd_kafka_poll_set_consumer(kafka);
  return kafka;
}

static void assign_from_start(rd_kafka_t *kafka, const char *topic, int partitions) {
  rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(partitions);
  for (int p = 0; p < partitions; p++)
    rd_kafka_topic_partition_list_add(list, topic, p)->offset = RD_KAFKA_OFFSET_BEGINNING;
  rd_kafka_resp_err_t error = rd_kafka_assign(kafka, list);
  if (error != RD_KAFKA_RESP_ERR_NO_ERROR) fail("cannot assign the partitions", rd_kafka_err2str(error));
  rd_kafka_topic_partition_list_destroy(list);
}

int main(int argc, char **argv) {
  static struct output out;
  static rd_kafka_message_t *batch[BATCH];
  if (argc != 5) {
    fprintf(stderr, "usage: floor BROKERS TOPIC PARTITIONS OUTPUT\n");
    return 64;
  }
  int partitions = atoi(argv[3]), ended = 0;
  long records = 0;
  out.file = open(argv[4], O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  if (out.file < 0) fail(argv[4], strerror(errno));
  rd_kafka_t *kafka = consumer(argv[1]);
  assign_from_start(kafka, argv[2], partitions);
  rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(kafka);
  while (ended < partitions) {
    ssize_t count = rd_kafka_consume_batch_queue(queue, 200, batch, BATCH);
    for (ssize_t i = 0; i < count; i++) {
      const rd_kafka_message_t *message = batch[i];
      if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        ended++;
      } else if (message->err != RD_KAFKA_RESP_ERR_NO_ERROR) {
        fail("cannot consume", rd_kafka_message_errstr(message));
      } else {
        put_line(&out, message->payload, message->len);
        records++;
      }
      rd_kafka_message_destroy(batch[i]);
    }
  }
  flush(&out);
  printf("%ld\n", records);
  fflush(stdout);
  _exit(0); /* closing the consumer in good order is not what is measured */
}
